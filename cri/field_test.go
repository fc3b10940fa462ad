package cri

import (
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// methods are all RPCs of CRI, by name.
func methods() map[string]protoreflect.MethodDescriptor {
	all := map[string]protoreflect.MethodDescriptor{}
	services := new(runtimeapi.VersionRequest).ProtoReflect().Descriptor().ParentFile().Services()
	for s := range services.Len() {
		of := services.Get(s).Methods()
		for m := range of.Len() {
			all[string(of.Get(m).Name())] = of.Get(m)
		}
	}
	return all
}

// newMessage makes an empty message of d's Go type.
func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // cri-api registers all of its messages
	}
	return t.New().Interface()
}

// field is a field of a request, at any depth.
type field struct {
	name string                         // path in the request, after the method: "StopContainer.timeout"
	path []protoreflect.FieldDescriptor // it is the last
}

// fields are all fields of m, each after the one that it lies in. Maps and what
// within names are not looked into.
func fields(within field, m protoreflect.MessageDescriptor, whole func(name string) bool) []field {
	var all []field
	for i := range m.Fields().Len() {
		d := m.Fields().Get(i)
		f := field{within.name + "." + string(d.Name()), append(within.path[:len(within.path):len(within.path)], d)}
		all = append(all, f)
		if d.Message() != nil && !d.IsMap() && !whole(f.name) {
			all = append(all, fields(f, d.Message(), whole)...)
		}
	}
	return all
}

func (f field) last() protoreflect.FieldDescriptor { return f.path[len(f.path)-1] }

// leaf says that f holds no other fields.
func (f field) leaf() bool { return f.last().Message() == nil || f.last().IsMap() }

// holder is the message in req that f is a field of. Of a list it is the first
// one; what is missing is made.
func (f field) holder(req proto.Message) protoreflect.Message {
	m := req.ProtoReflect()
	for _, d := range f.path[:len(f.path)-1] {
		switch {
		case !d.IsList():
			m = m.Mutable(d).Message()
		case m.Get(d).List().Len() > 0:
			m = m.Mutable(d).List().Get(0).Message()
		default:
			m = m.Mutable(d).List().AppendMutable().Message()
		}
	}
	return m
}

// parse reads a value of f in protobuf's text format.
func (f field) parse(text string) (protoreflect.Value, error) {
	m := newMessage(f.last().ContainingMessage())
	if err := prototext.Unmarshal([]byte(f.last().TextName()+": "+text), m); err != nil {
		return protoreflect.Value{}, err
	}
	return m.ProtoReflect().Get(f.last()), nil
}

// A value of a field; what says which it is where its text would be too long.
type value struct {
	what string
	is   protoreflect.Value
}

const (
	many = 20_000
	huge = 1 << 18 // bytes
)

// meanValues are what a careless or spiteful client might put into f of req,
// whatever f means.
func (f field) meanValues(req proto.Message) []value {
	d := f.last()
	m := f.holder(req)
	switch {
	case d.IsMap():
		return meanMaps(m, d)
	case d.IsList():
		return meanLists(m, d)
	case d.Message() != nil:
		return []value{{"nothing", protoreflect.Value{}}, {"an empty message", m.NewField(d)}}
	}
	return meanScalars(d)
}

func meanScalars(d protoreflect.FieldDescriptor) []value {
	var all []value
	add := func(v any) {
		all = append(all, value{fmt.Sprintf("%.40q", fmt.Sprint(v)), protoreflect.ValueOf(v)})
	}
	switch d.Kind() {
	case protoreflect.BoolKind:
		add(false)
		add(true)
	case protoreflect.EnumKind:
		for _, n := range []protoreflect.EnumNumber{-1, 9999, math.MaxInt32} {
			add(n)
		}
	case protoreflect.Int32Kind:
		for _, n := range []int32{-1, 0, math.MinInt32, math.MaxInt32} {
			add(n)
		}
	case protoreflect.Int64Kind:
		for _, n := range []int64{-1, 0, math.MinInt64, math.MaxInt64, math.MaxInt64 / 2} {
			add(n)
		}
	case protoreflect.Uint32Kind:
		for _, n := range []uint32{0, math.MaxInt32, math.MaxUint32} {
			add(n)
		}
	case protoreflect.Uint64Kind:
		for _, n := range []uint64{0, math.MaxInt64, math.MaxUint64} {
			add(n)
		}
	case protoreflect.StringKind:
		for _, s := range meanStrings(huge) {
			add(s)
		}
	case protoreflect.BytesKind:
		for _, s := range append(meanStrings(huge), "\xff\xfe") {
			all = append(all, value{fmt.Sprintf("%.40q", s), protoreflect.ValueOf([]byte(s))})
		}
	default:
		panic(fmt.Sprintf("%s: no mean values of kind %s", d.FullName(), d.Kind()))
	}
	return all
}

func meanStrings(huge int) []string {
	return []string{"", "a\x00b", "a\nb", "../..", "/", "%s%n", "-1", "\u202e", strings.Repeat("x", huge), strings.Repeat("/x", huge/2)}
}

// meanLists are lists of one mean entry, of a doubled one and of very many.
func meanLists(m protoreflect.Message, d protoreflect.FieldDescriptor) []value {
	list := func(what string, n int, entry protoreflect.Value) value {
		l := m.NewField(d).List()
		for range n {
			l.Append(entry)
		}
		return value{what, protoreflect.ValueOfList(l)}
	}
	empty := m.NewField(d).List().NewElement()
	all := []value{list("no entries", 0, empty), list("an empty entry", 1, empty), list("very many empty entries", many, empty)}
	if d.Message() == nil {
		for _, v := range meanScalars(d) {
			all = append(all, list("an entry "+v.what, 1, v.is))
		}
	}
	if now := m.Get(d).List(); now.Len() > 0 {
		all = append(all, list("an entry twice", 2, now.Get(0)))
	}
	return all
}

// meanMaps: the maps of CRI are all of strings.
func meanMaps(m protoreflect.Message, d protoreflect.FieldDescriptor) []value {
	entries := func(what string, pairs map[string]string) value {
		into := m.NewField(d).Map()
		for k, v := range pairs {
			into.Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfString(v))
		}
		return value{what, protoreflect.ValueOfMap(into)}
	}
	var all []value
	for _, s := range meanStrings(huge / 4) {
		all = append(all, entries(fmt.Sprintf("a key and a value %.40q", s), map[string]string{s: s}), entries(fmt.Sprintf("a value %.40q", s), map[string]string{"net.a": s}))
	}
	pairs := map[string]string{}
	for i := range many {
		pairs[fmt.Sprintf("net.a%d", i)] = "1"
	}
	return append(all, entries("no entries", nil), entries("very many entries", pairs))
}
