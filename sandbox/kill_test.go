package sandbox

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The promise of the house, tried on the real thing: real OCI runtimes and the
// real keeper, a real image store, the reference CNI plugins; and a berthd that
// is killed at every step of every verb. Its caller does as the kubelet does: it
// repeats what was not answered. Then every answer is right, the container's
// process was started once, its exit code is its own, each line of its output is
// in its log once, and in the end nothing is left.

// script is a pod's life: the verbs, and what is seen after each.
var script = []struct{ verb, seen string }{
	{"run", "ready"},
	{"create", "ready created"},
	{"start", "ready running"},
	{"exec", "ready running"},
	{"stop", "ready exited 7 Error"},
	{"remove", "ready"},
	{"stop pod", "notready"},
	{"remove pod", ""},
}

// plan holds the deaths of the daemons that a verb is asked of, one after the
// other. The daemon after the last of them lives.
type plan map[string][]death

// live plays the script.
func (l *life) live(p plan) {
	l.t.Helper()
	before := ""
	for _, s := range script {
		a := l.perform(s.verb, p[s.verb], before, s.seen)
		if a.Err != "" || a.Seen != s.seen {
			l.t.Fatalf("%s: error %q, seen: %q, want %q", s.verb, a.Err, a.Seen, s.seen)
		}
		switch s.verb {
		case "start":
			l.eventually(l.notStarted)
		case "exec":
			if want := "hello\n5"; a.Said != want {
				l.t.Errorf("exec: %q, want %q", a.Said, want)
			}
			l.eventually(l.strayExecs)
		case "stop":
			l.wantOutput()
		}
		before = s.seen
	}
	l.eventually(l.held)
	l.closeDaemon()
	mirror, _ := filepath.Glob(l.DataDir + "/pods/*")
	if left := append(l.held(), mirror...); len(left) > 0 {
		l.t.Errorf("left: %q", left)
	}
}

// perform asks for the verb until it is answered. before and after it, this is
// what is seen.
func (l *life) perform(verb string, deaths []death, before, after string) answer {
	l.t.Helper()
	o := order{Verb: verb, Rest: l.rehearsal != nil}
	switch verb {
	case "run":
	case "create", "stop pod", "remove pod":
		o.ID = l.pod
	default:
		o.ID = l.container
	}
	for {
		o.Die = death{}
		if len(deaths) > 0 {
			o.Die, deaths = deaths[0], deaths[1:]
		}
		a, answered := l.ask(o)
		if !answered {
			if l.leftAlone {
				l.recover(before, after)
			}
			continue
		}
		switch verb {
		case "run":
			l.pod = a.ID
		case "create":
			l.container = a.ID
		}
		if l.rehearsal != nil {
			l.rehearsal[verb] = a.Passed
		}
		return a
	}
}

// recover lets a daemon recover by itself, until what is seen is as before a
// verb or as after it, and true.
func (l *life) recover(before, after string) {
	l.t.Helper()
	l.eventually(func() (wrong []string) {
		a, _ := l.ask(order{Verb: "look"})
		if a.Seen != before && a.Seen != after {
			wrong = append(wrong, fmt.Sprintf("%q is seen, want %q or %q", a.Seen, before, after))
		}
		if runs := l.runs(); runs != strings.Contains(a.Seen, "running") {
			wrong = append(wrong, fmt.Sprintf("%q is seen, the container runs: %v", a.Seen, runs))
		}
		return wrong
	})
}

// rehearse plays the script without a death and returns the steps of each verb.
// Those of the background, which come when they will, are not among them.
func rehearse(t *testing.T, s setup) map[string][]string {
	t.Helper()
	steps := map[string][]string{}
	t.Run("nobody dies", func(t *testing.T) {
		l := newLife(t, s)
		l.rehearsal = steps
		l.live(nil)
	})
	if t.Failed() {
		t.FailNow()
	}
	for verb := range steps {
		steps[verb] = slices.DeleteFunc(steps[verb], func(step string) bool {
			return strings.HasSuffix(step, ".GC") || strings.HasSuffix(step, " mirror")
		})
		if len(steps[verb]) == 0 {
			t.Fatalf("%s has no steps", verb)
		}
	}
	return steps
}

// nth is a death at step n of a verb that has these steps.
func nth(steps []string, n int) death {
	d := death{Step: steps[n]}
	for _, step := range steps[:n+1] {
		if step == d.Step {
			d.Count++
		}
	}
	return d
}

// everyStep returns plans that kill each verb at each of its steps: the nth plan
// each at its nth, and then as more says.
func everyStep(steps map[string][]string, more func(n int) []death) (plans []plan) {
	for n := 0; ; n++ {
		p := plan{}
		for verb, of := range steps {
			if n < len(of) {
				p[verb] = append([]death{nth(of, n)}, more(n)...)
			}
		}
		if len(p) == 0 {
			return plans
		}
		plans = append(plans, p)
	}
}

// The daemon that recovers is asked again at once, and killed as well: at the
// nth step that it passes, those of the recovery and of the answer counted
// together.
func TestKilledAtEveryStep(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, s setup) {
		again := func(n int) []death { return []death{{Count: n + 1}} }
		for n, p := range everyStep(rehearse(t, s), again) {
			t.Run(fmt.Sprint("step ", n+1), func(t *testing.T) { newLife(t, s).live(p) })
		}
	})
}

// The daemon that recovers is left alone until it is done: the verb has happened
// or has not.
func TestKilledAtEveryStepAndLeftAlone(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, s setup) {
		never := func(int) []death { return nil }
		for n, p := range everyStep(rehearse(t, s), never) {
			t.Run(fmt.Sprint("step ", n+1), func(t *testing.T) {
				l := newLife(t, s)
				l.leftAlone = true
				l.live(p)
			})
		}
	})
}

// A pod with a user namespace, and in it a shared pid namespace with its init,
// comes and goes like any other.
func TestKilledAtEveryStepOfAUserNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, s setup) {
		s.Users = true
		again := func(n int) []death { return []death{{Count: n + 1}} }
		for n, p := range everyStep(rehearse(t, s), again) {
			t.Run(fmt.Sprint("step ", n+1), func(t *testing.T) { newLife(t, s).live(p) })
		}
	})
}

// berthd is killed while the keeper, the runner and the OCI runtime work for it:
// they go on, and the next daemon takes over what they have done meanwhile.
func TestKilledInTheMiddleOfAStep(t *testing.T) {
	starting := []string{"add done", "start begun", "runtime", "start ran", "settle asked", "settle done", "start settled"}
	ending := []string{"exit peeked", "exit recorded", "exit told", "exit killed", "exit emptied", "exit drained", "exit reaped"}
	forEachRuntime(t, func(t *testing.T, s setup) {
		for i := range starting {
			t.Run(starting[i]+", "+ending[i], func(t *testing.T) {
				newLife(t, s).live(plan{"start": {{In: starting[i]}}, "exec": {{In: starting[i]}}, "stop": {{In: ending[i]}}})
			})
		}
	})
}

// The runner dies a moment before berthd, around each step that is its work.
func TestKilledWithTheRunner(t *testing.T) {
	works := map[string]string{
		"run": "runtime.MakePod", "start": "runtime.Start", "exec": "exec's output",
		"stop": "runtime.Signal", "remove": "runtime.Remove", "stop pod": "runtime.RemovePod",
	}
	forEachRuntime(t, func(t *testing.T, s setup) {
		for _, when := range []string{"before ", "after "} {
			t.Run(when+"its work", func(t *testing.T) {
				p := plan{}
				for verb, step := range works {
					p[verb] = []death{{Step: when + step, Count: 1, With: "runner"}}
				}
				newLife(t, s).live(p)
			})
		}
	})
}

// The keeper dies a moment before berthd, and only the runner is left to hold
// anything of the container. The next keeper takes it over: every exit code is
// right, and every line is in the log.
func TestKilledWithTheKeeper(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, s setup) {
		for _, at := range []struct {
			verb string
			death
		}{
			{"run", death{Step: "after runtime.MakePod"}},
			{"start", death{Step: "before runtime.Start"}},
			{"start", death{In: "runtime"}},
			{"start", death{Step: "after runtime.Start"}},
			{"start", death{Step: "after record container started"}},
			{"exec", death{In: "runtime"}},
			{"exec", death{Step: "after exec's output"}},
			{"stop", death{Step: "before runtime.Signal"}},
			{"stop", death{Step: "after runtime.Signal"}},
			{"stop", death{Step: "before record container exit"}},
			{"remove", death{Step: "before runtime.Remove"}},
			{"stop pod", death{Step: "before runtime.RemovePod"}},
		} {
			t.Run(at.verb+" "+at.Step+at.In, func(t *testing.T) {
				l := newLife(t, s)
				if at.With = "keeper"; at.Step != "" {
					at.Count = 1
				}
				l.live(plan{at.verb: {at.death}})
			})
		}
	})
}
