package sandbox

import (
	"fmt"
	"testing"
)

// table says which event leads from which state to which. What it does not hold
// is illegal.
type table[S, E ~string] map[S]map[E]S

// next returns the state after e. An illegal transition is a mistake of this
// package, never of a caller (verbs look at the state before they begin): an
// error in production, a panic in tests.
func (t table[S, E]) next(s S, e E) (S, error) {
	if next, ok := t[s][e]; ok {
		return next, nil
	}
	err := fmt.Errorf("%w: %q in state %q", ErrIllegal, e, s)
	if testing.Testing() {
		panic(err)
	}
	return s, err
}

type podState string

const (
	podCreating podState = "creating" // invisible; record written, effects under way
	podReady    podState = "ready"
	podNotReady podState = "notready" // stopped, or of another boot; its effects are given back or will be
	podRemoving podState = "removing" // everything goes, its record last
	podGone     podState = "gone"     // in the memory of those who still hold the *Pod
)

type podEvent string

const (
	podMade    podEvent = "made"    // every step of Run is done
	podStop    podEvent = "stop"    // StopPodSandbox
	podLost    podEvent = "lost"    // the node was rebooted under it
	podRemove  podEvent = "remove"  // RemovePodSandbox, or a creation that ended early
	podRemoved podEvent = "removed" // nothing is left
)

var podStates = table[podState, podEvent]{
	podCreating: {podMade: podReady, podRemove: podRemoving},
	podReady:    {podStop: podNotReady, podLost: podNotReady, podRemove: podRemoving},
	podNotReady: {podStop: podNotReady, podLost: podNotReady, podRemove: podRemoving},
	podRemoving: {podRemove: podRemoving, podRemoved: podGone},
	podGone:     {},
}

type containerState string

const (
	containerCreating containerState = "creating" // invisible
	containerCreated  containerState = "created"  // has a root and a spec, no process yet
	containerStarting containerState = "starting" // the runtime may or may not have started its process
	containerRunning  containerState = "running"
	containerExited   containerState = "exited" // its process is gone and its log is complete
	containerRemoving containerState = "removing"
	containerGone     containerState = "gone"
)

type containerEvent string

const (
	containerMade    containerEvent = "made"
	containerStart   containerEvent = "start"
	containerStarted containerEvent = "started"
	containerExit    containerEvent = "exit" // its process ended, or never came to be
	containerLost    containerEvent = "lost" // the node was rebooted under it
	containerRemove  containerEvent = "remove"
	containerRemoved containerEvent = "removed"
)

// A running container has to exit before it is removed: its exit code is never
// thrown away unseen.
var containerStates = table[containerState, containerEvent]{
	containerCreating: {containerMade: containerCreated, containerRemove: containerRemoving},
	containerCreated:  {containerStart: containerStarting, containerLost: containerExited, containerRemove: containerRemoving},
	containerStarting: {containerStarted: containerRunning, containerExit: containerExited, containerLost: containerExited, containerRemove: containerRemoving},
	containerRunning:  {containerExit: containerExited, containerLost: containerExited},
	containerExited:   {containerLost: containerExited, containerRemove: containerRemoving},
	containerRemoving: {containerRemove: containerRemoving, containerRemoved: containerGone},
	containerGone:     {},
}
