package sandbox

import (
	"strconv"
	"strings"
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The first and last realtime signals as C libraries number them; the kernel's
// first two belong to the library.
const (
	realtimeMin = 34
	realtimeMax = 64
)

// signals are CRI's signals below the realtime ones. Where two names mean one
// signal, the first is the one that a number is shown as.
var signals = []struct {
	cri    runtimeapi.Signal
	name   string
	number syscall.Signal
}{
	{runtimeapi.Signal_SIGNAL_SIGABRT, "ABRT", syscall.SIGABRT},
	{runtimeapi.Signal_SIGNAL_SIGALRM, "ALRM", syscall.SIGALRM},
	{runtimeapi.Signal_SIGNAL_SIGBUS, "BUS", syscall.SIGBUS},
	{runtimeapi.Signal_SIGNAL_SIGCHLD, "CHLD", syscall.SIGCHLD},
	{runtimeapi.Signal_SIGNAL_SIGCLD, "CLD", syscall.SIGCLD},
	{runtimeapi.Signal_SIGNAL_SIGCONT, "CONT", syscall.SIGCONT},
	{runtimeapi.Signal_SIGNAL_SIGFPE, "FPE", syscall.SIGFPE},
	{runtimeapi.Signal_SIGNAL_SIGHUP, "HUP", syscall.SIGHUP},
	{runtimeapi.Signal_SIGNAL_SIGILL, "ILL", syscall.SIGILL},
	{runtimeapi.Signal_SIGNAL_SIGINT, "INT", syscall.SIGINT},
	{runtimeapi.Signal_SIGNAL_SIGIO, "IO", syscall.SIGIO},
	{runtimeapi.Signal_SIGNAL_SIGIOT, "IOT", syscall.SIGIOT},
	{runtimeapi.Signal_SIGNAL_SIGKILL, "KILL", syscall.SIGKILL},
	{runtimeapi.Signal_SIGNAL_SIGPIPE, "PIPE", syscall.SIGPIPE},
	{runtimeapi.Signal_SIGNAL_SIGPOLL, "POLL", syscall.SIGPOLL},
	{runtimeapi.Signal_SIGNAL_SIGPROF, "PROF", syscall.SIGPROF},
	{runtimeapi.Signal_SIGNAL_SIGPWR, "PWR", syscall.SIGPWR},
	{runtimeapi.Signal_SIGNAL_SIGQUIT, "QUIT", syscall.SIGQUIT},
	{runtimeapi.Signal_SIGNAL_SIGSEGV, "SEGV", syscall.SIGSEGV},
	{runtimeapi.Signal_SIGNAL_SIGSTKFLT, "STKFLT", syscall.SIGSTKFLT},
	{runtimeapi.Signal_SIGNAL_SIGSTOP, "STOP", syscall.SIGSTOP},
	{runtimeapi.Signal_SIGNAL_SIGSYS, "SYS", syscall.SIGSYS},
	{runtimeapi.Signal_SIGNAL_SIGTERM, "TERM", syscall.SIGTERM},
	{runtimeapi.Signal_SIGNAL_SIGTRAP, "TRAP", syscall.SIGTRAP},
	{runtimeapi.Signal_SIGNAL_SIGTSTP, "TSTP", syscall.SIGTSTP},
	{runtimeapi.Signal_SIGNAL_SIGTTIN, "TTIN", syscall.SIGTTIN},
	{runtimeapi.Signal_SIGNAL_SIGTTOU, "TTOU", syscall.SIGTTOU},
	{runtimeapi.Signal_SIGNAL_SIGURG, "URG", syscall.SIGURG},
	{runtimeapi.Signal_SIGNAL_SIGUSR1, "USR1", syscall.SIGUSR1},
	{runtimeapi.Signal_SIGNAL_SIGUSR2, "USR2", syscall.SIGUSR2},
	{runtimeapi.Signal_SIGNAL_SIGVTALRM, "VTALRM", syscall.SIGVTALRM},
	{runtimeapi.Signal_SIGNAL_SIGWINCH, "WINCH", syscall.SIGWINCH},
	{runtimeapi.Signal_SIGNAL_SIGXCPU, "XCPU", syscall.SIGXCPU},
	{runtimeapi.Signal_SIGNAL_SIGXFSZ, "XFSZ", syscall.SIGXFSZ},
}

// number is the kernel's number of a CRI signal, 0 for one that CRI does not
// know. CRI numbers the realtime signals in a row: RTMIN to RTMIN+15, then
// RTMAX-14 to RTMAX.
func number(s runtimeapi.Signal) syscall.Signal {
	switch {
	case s >= runtimeapi.Signal_SIGNAL_SIGRTMIN && s <= runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15:
		return realtimeMin + syscall.Signal(s-runtimeapi.Signal_SIGNAL_SIGRTMIN)
	case s >= runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14 && s <= runtimeapi.Signal_SIGNAL_SIGRTMAX:
		return realtimeMax - syscall.Signal(runtimeapi.Signal_SIGNAL_SIGRTMAX-s)
	}
	for _, known := range signals {
		if known.cri == s {
			return known.number
		}
	}
	return 0
}

// parseSignal reads the StopSignal of an image: a name with or without SIG, in
// any case, RTMIN+n, RTMAX-n, or a number.
func parseSignal(text string) (runtimeapi.Signal, bool) {
	if n, err := strconv.Atoi(text); err == nil {
		return numbered(n)
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	for base, first := range map[string]int{"RTMIN": realtimeMin, "RTMAX": realtimeMax} {
		offset, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(offset)
		if err != nil && offset != "" {
			return 0, false
		}
		if n+first < realtimeMin {
			return 0, false
		}
		return numbered(first + n)
	}
	for _, known := range signals {
		if known.name == name {
			return known.cri, true
		}
	}
	return 0, false
}

// numbered is the CRI signal with a number of the kernel's.
func numbered(n int) (runtimeapi.Signal, bool) {
	switch {
	case n >= realtimeMin && n <= realtimeMin+15:
		return runtimeapi.Signal_SIGNAL_SIGRTMIN + runtimeapi.Signal(n-realtimeMin), true
	case n > realtimeMin+15 && n <= realtimeMax:
		return runtimeapi.Signal_SIGNAL_SIGRTMAX - runtimeapi.Signal(realtimeMax-n), true
	}
	for _, known := range signals {
		if n > 0 && known.number == syscall.Signal(n) {
			return known.cri, true
		}
	}
	return 0, false
}

// signal is what asks the container to stop: its config's, else its image's,
// else SIGTERM.
func (c *Container) signal() runtimeapi.Signal {
	if s := c.config.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return s
	}
	if s, ok := parseSignal(c.record().Image.StopSignal); ok {
		return s
	}
	return runtimeapi.Signal_SIGNAL_SIGTERM
}
