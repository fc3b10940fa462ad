package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"

	"k8s.io/klog/v2"

	"berth/cni"
	"berth/image"
)

// liveKeys are those whose change needs no restart.
var liveKeys = []string{"image.plain_http", "image.pull_min_rate", "image.pull_timeout", "network.builtin"}

// settings are the configuration in use and what follows its changes.
type settings struct {
	path     string // of the file; empty: defaultPath
	images   *image.Store
	network  *cni.Network
	runtimes map[string]shownRuntime
	limits   shownLimits

	mu     sync.Mutex
	config config
}

// follow reads the file again at every SIGHUP until ctx ends or the function
// that it returns is called, which waits.
func (s *settings) follow(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var following sync.WaitGroup
	following.Go(func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-hangups:
				s.reload()
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		following.Wait()
	}
}

// reload takes the whole file or, with a reason in the log, nothing of it.
func (s *settings) reload() {
	c, err := load(s.path)
	if err == nil {
		err = s.change(c)
	}
	if err != nil {
		klog.ErrorS(err, "The configuration is not reloaded, nothing has changed")
	}
}

func (s *settings) change(c config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := changes(s.config, c)
	fixed := slices.DeleteFunc(slices.Clone(changed), func(key string) bool { return slices.Contains(liveKeys, key) })
	if len(fixed) > 0 {
		return fmt.Errorf("a new %s needs a restart of berthd (containers run on)", strings.Join(fixed, ", "))
	}
	s.images.SetRegistries(c.registries())
	s.network.Builtin.Store(c.Network.Builtin)
	s.config = c
	klog.InfoS("Configuration reloaded", "changed", changed)
	return nil
}

// info is what a verbose Status shows.
func (s *settings) info() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return map[string]string{"config": encode(s.config), "runtimes": encode(s.runtimes), "limits": encode(s.limits)}
}

// shownLimits are those that containers get, where they may be others than those of
// the configuration. `berth status` reads them.
type shownLimits struct {
	Nofile uint64 `json:"nofile"`
}

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil { // strings and numbers: it cannot
		panic(err)
	}
	return string(text)
}

// changes lists the keys, with dots, that differ between two configurations.
func changes(old, new config) []string {
	before, after := old.values(), new.values()
	for key, value := range after {
		if was, ok := before[key]; ok && reflect.DeepEqual(was, value) {
			delete(before, key)
		} else {
			before[key] = value
		}
	}
	return slices.Sorted(maps.Keys(before))
}

// values are the values of all keys.
func (c config) values() map[string]any {
	var tree map[string]any
	if err := json.Unmarshal([]byte(encode(c)), &tree); err != nil {
		panic(err)
	}
	flat := map[string]any{}
	var walk func(prefix string, tree map[string]any)
	walk = func(prefix string, tree map[string]any) {
		for key, value := range tree {
			if below, ok := value.(map[string]any); ok {
				walk(prefix+key+".", below)
			} else {
				flat[prefix+key] = value
			}
		}
	}
	walk("", tree)
	return flat
}
