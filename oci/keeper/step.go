package keeper

// Step, if it is not nil, is told each place where the keeper or the runner has
// done one thing of an exit, a start, a user namespace or a chunk of output and
// not yet the next. It is nil but in tests, which die at these places: nothing
// may be lost there. Set it before Main.
var Step func(name string)

// At is called at such a place, by any goroutine.
func At(name string) {
	if Step != nil {
		Step(name)
	}
}
