package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What -o json shows: one schema per command, described in docs/cli.md. Fields
// are added, never renamed or removed. Times are RFC 3339 in UTC, sizes are
// bytes, and ids are whole.

// format is the value of -o.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "table|json" }

func (f *format) Set(text string) error {
	switch format(text) {
	case formatTable, formatJSON:
		*f = format(text)
		return nil
	}
	return fmt.Errorf("use table or json")
}

// addFormat gives cmd the flag -o.
func addFormat(cmd *cobra.Command, f *format) {
	*f = formatTable
	cmd.Flags().VarP(f, "output", "o", "`table|json`: for people, or for programs")
	completeFlag(cmd, "output", string(formatTable), string(formatJSON))
}

// writeJSON writes v for programs that people look at as well.
func writeJSON(w io.Writer, v any) error {
	var text bytes.Buffer
	out := json.NewEncoder(&text)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	if err := out.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(shownJSON(text.Bytes()))
	return err
}

// containerReport is an element of `berth ps -o json`: a container, or a pod that
// has none, whose id and container are empty.
type containerReport struct {
	Name      string            `json:"name"` // what berth calls it
	ID        string            `json:"id"`
	Container string            `json:"container"` // the name in its pod
	Pod       podName           `json:"pod"`
	Image     string            `json:"image"`
	ImageID   string            `json:"imageId"`
	State     string            `json:"state"`              // created, running, exited, unknown; none without a container
	ExitCode  *int32            `json:"exitCode,omitempty"` // of one that has exited
	Created   *time.Time        `json:"created,omitempty"`
	IP        string            `json:"ip"`
	Ports     []string          `json:"ports"` // as `berth run -p` has them
	Labels    map[string]string `json:"labels,omitempty"`
}

// podName says which pod a container is in.
type podName struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt"`
}

// imageReport is an element of `berth images -o json`.
type imageReport struct {
	ID      string     `json:"id"`
	Tags    []string   `json:"tags"`
	Digests []string   `json:"digests"`
	Size    uint64     `json:"size"`
	Created *time.Time `json:"created,omitempty"` // when it was built
	Pulled  *time.Time `json:"pulled,omitempty"`
}

// statusReport is `berth status -o json`.
type statusReport struct {
	Version    string            `json:"version"` // berthd's
	Ready      bool              `json:"ready"`
	Conditions []conditionReport `json:"conditions"`
	Handlers   []string          `json:"handlers"`
	OpenFiles  limitReport       `json:"open_files"` // RLIMIT_NOFILE of containers
	Pods       podsReport        `json:"pods"`
	Containers containersReport  `json:"containers"`
	Images     int               `json:"images"`
	Stores     []storeReport     `json:"stores"`
}

type conditionReport struct {
	Type    string `json:"type"`
	Ready   bool   `json:"ready"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

type limitReport struct {
	Effective  uint64 `json:"effective"`
	Configured uint64 `json:"configured"`
}

type podsReport struct {
	Total int `json:"total"`
	Ready int `json:"ready"`
}

type containersReport struct {
	Total   int `json:"total"`
	Running int `json:"running"`
}

type storeReport struct {
	Path string `json:"path"`
	Used uint64 `json:"used"`
}

// versionReport is `berth version -o json`.
type versionReport struct {
	Berth  string        `json:"berth"`
	Berthd *daemonReport `json:"berthd,omitempty"` // unless it does not answer
}

type daemonReport struct {
	Version string `json:"version"`
	CRI     string `json:"cri"`
}

// inspectReport is an element of `berth inspect`. Which of the statuses is set
// depends on the kind; they are CRI's messages in protobuf's JSON.
type inspectReport struct {
	Kind       string          `json:"kind"` // container, pod or image
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Pod        *podName        `json:"pod,omitempty"`        // of a container
	Containers []string        `json:"containers,omitempty"` // ids, of a pod
	Status     json.RawMessage `json:"status"`
	Info       json.RawMessage `json:"info,omitempty"` // what else berthd tells; may change between versions
}

func (l psLine) report() containerReport {
	r := containerReport{
		Name: l.name(), ID: l.container.GetId(), Container: l.container.GetMetadata().GetName(), Pod: l.podName(),
		Image: l.image(true), ImageID: l.container.GetImageId(), State: l.stateWord(),
		IP: l.ip, Ports: []string{}, Labels: l.container.GetLabels(), Created: instant(l.created()),
	}
	if l.container == nil {
		r.Labels = l.pod.GetLabels()
	}
	if l.container.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
		r.ExitCode = &l.exitCode
	}
	if ports := l.pod.GetAnnotations()[portsAnnotation]; ports != "" {
		r.Ports = strings.Split(ports, ", ")
	}
	return r
}

func (e entry) podName() podName {
	m := e.pod.GetMetadata()
	return podName{ID: e.pod.GetId(), Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt()}
}

// instant is CRI's nanoseconds since 1970 as a time, nil for 0.
func instant(at int64) *time.Time {
	if at == 0 {
		return nil
	}
	t := time.Unix(0, at).UTC()
	return &t
}

// reports makes a report of each, and an empty list of nothing.
func reports[T, R any](all []T, report func(T) R) []R {
	made := make([]R, 0, len(all))
	for _, one := range all {
		made = append(made, report(one))
	}
	return made
}
