package keeper

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// firstRealtime and lastRealtime are the signals without a meaning; libc uses the
// two below them.
const firstRealtime, lastRealtime = 35, 64

// harmless are the signals that neither end nor stop the keeper and the runner:
// all but those of faults, those that ask for a dump of the goroutines, those that
// Go needs, and those that nobody can catch.
func harmless() []syscall.Signal {
	signals := []syscall.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGVTALRM, unix.SIGIO, unix.SIGPWR, unix.SIGXCPU, unix.SIGXFSZ,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT, unix.SIGWINCH,
	}
	for s := syscall.Signal(firstRealtime); s <= lastRealtime; s++ {
		signals = append(signals, s)
	}
	return signals
}

// CatchSignals gives the harmless signals a handler that does nothing. They are not
// ignored, and no longer so if whoever started this process had them ignored: an
// ignored signal stays ignored in every program that is executed from here, and a
// container would not be stopped by it.
func CatchSignals() {
	var signals []os.Signal
	for _, s := range harmless() {
		signals = append(signals, s)
	}
	signal.Notify(make(chan os.Signal, 1), signals...)
	defaultReserved()
}

// defaultReserved ends the ignoring of the signals that libc keeps for itself, which
// os/signal leaves alone.
func defaultReserved() {
	const ignored = 1 // SIG_IGN
	type action struct {
		handler uintptr
		rest    [7]uintptr
	}
	for s := uintptr(32); s < firstRealtime; s++ {
		var now, byDefault action
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, s, 0, uintptr(unsafe.Pointer(&now)), 8, 0, 0)
		if errno == 0 && now.handler == ignored {
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
		}
	}
}

// ignoreSignals is called before this process executes another program, which
// handlers do not outlive: HUP would end the keeper before the new program has called
// CatchSignals. Go leaves these as it finds them; for others it makes no difference.
func ignoreSignals() {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
}
