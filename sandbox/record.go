package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"berth/cni"
	"berth/oci"
)

// Files of a pod's and a container's directory.
const (
	recordFile = "record" // JSON; a directory without one was never begun, or is half removed
	configFile = "config" // binary proto of the CRI config; written once, before the record
	specFile   = "spec"   // container: the OCI runtime spec as JSON; written once, before it is created
)

// podRecord is what has become of a pod: on disk as JSON and, as the last one
// written, in memory. It holds no secret.
type podRecord struct {
	lastingPod

	State podState
	Steps []Step // of its creation

	Freed   bool // namespaces, /dev/shm and cgroup are given back; false again when a removal met a mount
	Dropped bool // its removal was answered; only the background still knows it; set for good
}

// lastingPod is the part of a pod's record that the mirror has too: what a
// rebooted node needs to report the pod and to clean up after it.
type lastingPod struct {
	ID         string
	Boot       string         // of the kernel that holds what the pod and its containers have
	Handler    string         // runtime handler as it was asked for; "" is the default
	Builtin    bool           // the built-in network may serve it
	CreatedAt  time.Time      // when it became ready; zero: it never was, and is invisible
	Attachment cni.Attachment // what the network gave
	Detached   bool           // the network has let it go, or it never had one; set for good
}

// containerRecord is what has become of a container. What clients see of either is
// made in status.go and info.go.
type containerRecord struct {
	lastingContainer

	State     containerState
	Mounted   map[int]imageRecord `json:",omitempty"` // by their index, the mounts of the config that are of images
	Volumes   []string            `json:",omitempty"` // the image's that it has, in the order of their directories
	Resources *resources          `json:",omitempty"` // what it may use; nil in records older than this field: what its config says
	Undo      *oci.Limits         `json:",omitempty"` // what an update under way has to put back if it does not succeed
	Pid       int                 // on the host, while it runs
	Steps     []Step              // of its creation and start

	Freed      bool // the runtime holds nothing of it
	StdinTaken bool // stdin_once: the one session has begun
}

// lastingContainer is for a container what lastingPod is for a pod.
type lastingContainer struct {
	ID         string
	CreatedAt  time.Time // when it was created; zero: it never was, and is invisible
	StartedAt  time.Time
	FinishedAt time.Time
	Image      imageRecord
	User       specs.User
	ExitCode   int
	Reason     string // of an exit: Completed, Error, OOMKilled, StartError, Unknown; while still starting: Unknown, or nothing yet
	Message    string // for people; set while still starting: the start has failed with it
}

// imageRecord is what a container keeps of an image, which may be removed from
// the store at any time.
type imageRecord struct {
	ID         digest.Digest
	Layers     []digest.Digest
	StopSignal string `json:",omitempty"` // from the image's config
	Name       string `json:",omitempty"` // what the container's image is called; "" in records older than this field, as is Ref
	Ref        string `json:",omitempty"` // repo digest by which it came, or the id
}

// Step is one step of an operation and how long it took.
type Step struct {
	Name string
	Took time.Duration
}

// effect does one thing that outlives the process: every change of the disk and
// every call of Runtime, Network and Images. It does nothing once ctx has ended. Its
// error is a *stepError.
func (ps *Pods) effect(ctx context.Context, name string, do func() error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := ps.hooked(name, do); err != nil {
		return &stepError{name, err}
	}
	return nil
}

func (ps *Pods) hooked(name string, do func() error) error {
	if ps.hook != nil {
		if err := ps.hook(name, false); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if ps.hook != nil {
		return ps.hook(name, true)
	}
	return nil
}

// stopwatch does effects and remembers how long each took.
type stopwatch struct {
	pods  *Pods
	steps []Step
}

func (w *stopwatch) effect(ctx context.Context, name string, do func() error) error {
	began := time.Now()
	err := w.pods.effect(ctx, name, do)
	w.steps = append(w.steps, Step{name, time.Since(began)})
	return err
}

// writeNew makes the directory of a new pod or container and writes its config,
// then its first record, which makes them count.
func writeNew(dir string, config proto.Message, record any) error {
	data, err := proto.Marshal(config)
	if err != nil {
		return fmt.Errorf("marshal config: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, configFile), data, 0o600); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, recordFile), record)
}

// load reads what writeNew and later changes wrote.
func load(dir string, config proto.Message, record any) error {
	if err := readJSON(filepath.Join(dir, recordFile), record); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(data, config); err != nil {
		return fmt.Errorf("parse %s: %w", filepath.Join(dir, configFile), err)
	}
	return nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("marshal %s: %w", path, err)
	}
	return writeFile(path, data, 0o600)
}

// writeFile puts data at path in one step: a reader, and whoever comes after a
// crash, sees the old content or the new. Each path has one writer at a time.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, data, mode); err != nil {
		return errors.Join(err, discard(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, discard(temp))
	}
	return nil
}

// discard removes a file that may not be there.
func discard(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
