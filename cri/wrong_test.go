package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/oci"
)

// Every method is there with a request that is right, or is known not to be
// built; every field that a request can have is judged, and nothing else is. A
// newer cri-api that adds a field fails here until somebody has decided.
func TestEveryFieldIsJudged(t *testing.T) {
	judged := judgements(t)
	for _, name := range slices.Sorted(maps.Keys(methods())) {
		method := methods()[name]
		if _, built := requests[name]; built == slices.Contains(unbuiltMethods, name) {
			t.Errorf("%s: is either built and has a request, or it is not built", name)
		}
		for _, f := range fieldsOf(method, judged) {
			_, known := judged[f.name]
			delete(judged, f.name)
			if f.leaf() && !known && !slices.Contains(unbuiltMethods, name) {
				t.Errorf("%s: nobody has judged which values are wrong", f.name)
			}
		}
	}
	for name := range judged {
		t.Errorf("%s: is judged, and no request has it", name)
	}
}

// What the table holds to be wrong is refused by name.
func TestWrongValues(t *testing.T) {
	w := newWrongWorld(t)
	judged := judgements(t)
	for _, name := range slices.Sorted(maps.Keys(methods())) {
		method := methods()[name]
		for _, f := range fieldsOf(method, judged) {
			j := judged[f.name]
			for _, text := range j.wrong {
				req := w.request(t, name, j.beside)
				v, err := f.parse(os.Expand(text, w.value))
				if err != nil {
					t.Errorf("%s: %.100s: %v", f.name, text, err)
					continue
				}
				put(f.holder(req), f.last(), v)
				what := fmt.Sprintf("%s: %.60s", f.name, text)
				w.refused(t, what, w.call(t, what, method, req), j.called(f.name)...)
			}
		}
	}
}

// A request without anything lacks what it cannot do without, and does not mean
// all that there is.
func TestEmptyRequests(t *testing.T) {
	w := newWrongWorld(t)
	for _, name := range slices.Sorted(maps.Keys(methods())) {
		method := methods()[name]
		err := w.call(t, name, method, newMessage(method.Input()))
		switch lacks := needs[name]; {
		case slices.Contains(unbuiltMethods, name):
			if status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: answered %v, and is said not to be built", name, err)
			}
		case lacks != "":
			w.refused(t, name, err, lacks)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each is right for itself, and both together are not.
func TestContradictions(t *testing.T) {
	w := newWrongWorld(t)
	try := func(list []contradiction, base map[string]string) {
		for _, c := range list {
			req := w.parse(t, c.method, base[c.method], c.beside)
			w.refused(t, c.what, w.call(t, c.what, methods()[c.method], req), c.names)
		}
	}
	try(contradictions, requests)
	try(plainContradictions, plain)
}

// Whatever a field holds, the answer is the one of a service that knows what it
// was asked, and nothing is left: neither of what was refused, nor of what was
// accepted, used and removed.
func TestMeanValues(t *testing.T) {
	w := newWrongWorld(t)
	judged := judgements(t)
	for _, name := range slices.Sorted(maps.Keys(methods())) {
		method := methods()[name]
		if slices.Contains(unbuiltMethods, name) {
			continue
		}
		if err := w.call(t, name, method, w.request(t, name, "")); err != nil {
			t.Fatalf("%s: the request that is right: %v", name, err)
		}
		for _, f := range fieldsOf(method, judged) {
			for _, v := range f.meanValues(w.request(t, name, "")) {
				req := w.request(t, name, "")
				if f.name == "PullImage.image.image" { // some would be pulled from afar
					v.is = protoreflect.ValueOf(w.registry.Host() + "/" + v.is.String())
				}
				put(f.holder(req), f.last(), v.is)
				what := f.name + ": " + v.what
				err := w.call(t, what, method, req)
				w.sane(t, what, err, judged[f.name], f)
			}
		}
	}
}

// fieldsOf are the fields of the method's request down to those that are judged
// whole.
func fieldsOf(method protoreflect.MethodDescriptor, judged map[string]judgement) []field {
	return fields(field{name: string(method.Name())}, method.Input(), func(name string) bool {
		_, whole := judged[name]
		return whole
	})
}

func put(m protoreflect.Message, d protoreflect.FieldDescriptor, v protoreflect.Value) {
	m.Clear(d)
	if v.IsValid() {
		m.Set(d, v)
	}
}

// wrongWorld is a node with one running container, which no wrong request may
// change.
type wrongWorld struct {
	*node
	values map[string]string        // of $names in the tables
	right  map[string]proto.Message // the methods' requests that are right, once parsed
	before []string                 // what was there when it was made
}

func newWrongWorld(t *testing.T) *wrongWorld {
	klog.SetLogger(klog.Logger{}) // thousands of refusals
	t.Cleanup(klog.ClearLogger)
	w := &wrongWorld{
		node:   newNode(t),
		values: map[string]string{"logs": t.TempDir(), "nobody": strings.Repeat("0", 64)},
		right:  map[string]proto.Message{},
	}
	w.runtime.exec = func(context.Context, oci.Exec) (int, error) { return 0, nil }
	w.runtime.features = oci.Features{RecursiveReadOnly: true, MappedMountOptions: true}
	w.values["image"], _ = w.pullBusybox(t)
	w.values["registry"] = w.registry.Host()
	w.values["hostname"], _ = os.Hostname()
	if sizes := oci.FindControls().PageSizes; len(sizes) > 0 {
		w.values["pagesizes"] = fmt.Sprintf("hugepage_limits { page_size: %q }", sizes[0])
	}
	for name, text := range map[string]string{"plain": plain["RunPodSandbox"], "mapped": requests["RunPodSandbox"]} {
		req := w.parse(t, "RunPodSandbox", text, `config { metadata { uid: "standing" } }`).(*runtimeapi.RunPodSandboxRequest)
		w.values[name] = w.runPod(t, req.GetConfig())
	}
	w.renew(t)
	return w
}

// renew makes the running container anew.
func (w *wrongWorld) renew(t *testing.T) {
	t.Helper()
	if old := w.values["container"]; old != "" {
		must[*runtimeapi.RemoveContainerResponse](t)(w.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: old}))
	}
	req := w.request(t, "CreateContainer", `config { metadata { name: "standing" } }`).(*runtimeapi.CreateContainerRequest)
	id := w.createContainer(t, w.values["mapped"], req.GetConfig())
	must[*runtimeapi.StartContainerResponse](t)(w.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}))
	w.values["container"] = id
	clear(w.right)
	w.before = w.state(t)
}

func (w *wrongWorld) value(name string) string { return w.values[name] }

// request is the method's request that is right, with more fields in protobuf's
// text format.
func (w *wrongWorld) request(t *testing.T, method, more string) proto.Message {
	t.Helper()
	if w.right[method] == nil {
		w.right[method] = w.parse(t, method, requests[method])
	}
	req := proto.Clone(w.right[method])
	proto.Merge(req, w.parse(t, method, more))
	return req
}

// parse joins texts to a request: lists are appended, all else is replaced.
func (w *wrongWorld) parse(t *testing.T, method string, texts ...string) proto.Message {
	t.Helper()
	req := newMessage(methods()[method].Input())
	for _, text := range texts {
		with := newMessage(methods()[method].Input())
		if err := prototext.Unmarshal([]byte(os.Expand(text, w.value)), with); err != nil {
			t.Fatalf("%s: %v in %s", method, err, text)
		}
		proto.Merge(req, with)
	}
	return req
}

// patience is far longer than any call may take.
const patience = 20 * time.Second

// call makes the call, uses and removes what it made, and looks at what is left.
func (w *wrongWorld) call(t *testing.T, what string, method protoreflect.MethodDescriptor, req proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp := newMessage(method.Output())
	err := w.conn.Invoke(ctx, fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name()), req, resp)
	if err == nil {
		if e := w.undo(t, ctx, resp); e != nil {
			t.Errorf("%s: was accepted, and then: %v", what, e)
		}
	}
	if after := w.state(t); !slices.Equal(after, w.before) {
		t.Fatalf("%s: answered %.300v, and there is more or less:\n%s", what, err, strings.Join(difference(w.before, after), "\n"))
	}
	return err
}

// undo uses what a call has made, as the kubelet does, and takes it back.
func (w *wrongWorld) undo(t *testing.T, ctx context.Context, made proto.Message) (err error) {
	switch r := made.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		if _, err = w.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: r.GetPodSandboxId()}); err == nil {
			_, err = w.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.GetPodSandboxId()})
		}
	case *runtimeapi.CreateContainerResponse:
		_, started := w.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.GetContainerId()})
		_, err = w.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: r.GetContainerId()})
		err = errors.Join(started, err)
	case *runtimeapi.UpdateContainerResourcesResponse:
		w.renew(t)
	case interface{ GetUrl() string }:
		parts := strings.Split(r.GetUrl(), "/")
		if w.server.Streams.begin(parts[len(parts)-2], parts[len(parts)-1]) == nil {
			return fmt.Errorf("no session waits at %s", r.GetUrl())
		}
		w.server.Streams.sessions.Done()
	}
	return err
}

// difference is what only one of two sorted lists has.
func difference(before, after []string) []string {
	of := map[string]int{}
	for _, s := range before {
		of[s]--
	}
	for _, s := range after {
		of[s]++
	}
	maps.DeleteFunc(of, func(_ string, n int) bool { return n == 0 })
	return slices.Sorted(maps.Keys(of))
}

// state is all that there is: what is listed, what is on disk, and the effects.
func (w *wrongWorld) state(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, p := range w.server.Pods.List() {
		all = append(all, "pod "+p.ID()+" "+p.Summary().GetState().String())
	}
	for _, c := range w.server.Pods.Containers() {
		all = append(all, "container "+c.ID()+" "+c.Summary().GetState().String())
	}
	for _, dir := range []string{w.server.Pods.Dir, w.server.Images.Dir} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if filepath.Base(path) != "c" { // of a pod's containers: made for the first, and left to the pod
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(all)
	return append(all, w.effects.list()...)
}

// refused fails t unless err is InvalidArgument and names one of the fields.
func (w *wrongWorld) refused(t *testing.T, what string, err error, fields ...string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != codes.InvalidArgument || !names(s.Message(), fields) || len(s.Message()) > maxText {
		t.Errorf("%s: got %v %.300q, want a refusal of %s", what, s.Code(), s.Message(), strings.Join(fields, " or "))
	}
}

// sane fails t unless err is one that any value of f may give. What is wrong with
// a field that holds others is one of those.
func (w *wrongWorld) sane(t *testing.T, what string, err error, j judgement, f field) {
	t.Helper()
	s := status.Convert(err)
	may := []string{"config"} // it is too large
	if j.free == "" {
		for _, name := range j.called(f.name) { // or what it lies in
			for at := len(name); at > 0; at = strings.LastIndex(name[:at], ".") {
				may = append(may, name[:at])
			}
		}
	}
	switch {
	case len(s.Message()) > maxText:
		t.Errorf("%s: an answer of %d bytes: %.100q", what, len(s.Message()), s.Message())
	case s.Code() == codes.OK, s.Code() == codes.NotFound && j.free == "":
	case s.Code() == codes.InvalidArgument && (!f.leaf() || names(s.Message(), may)):
	default:
		t.Errorf("%s: got %v %.300q", what, s.Code(), s.Message())
	}
}

// index is which entry of a list or a map an error names.
var index = regexp.MustCompile(`\[(\d+|"(\\.|[^"\\])*")\]`)

// names says whether an error's text names one of the fields, or an entry of it.
func names(text string, fields []string) bool {
	text = " " + index.ReplaceAllString(text, "")
	return slices.ContainsFunc(fields, func(name string) bool { return strings.Contains(text, " "+name+": ") })
}
