package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth/oci"
)

// The stories of testdata/*.txt: commands, then "----", then what they answer
// and what is seen after them. -update writes what is seen anew. The commands:
//
//	run POD, stop-pod POD, remove-pod POD
//	create POD CONTAINER, start C, stop C GRACE, remove C
//	exit C CODE                the process ends; "?": nobody saw how
//	fail EFFECT                every such effect fails, until "mend"
//	crash before|after EFFECT  the daemon dies at the next such effect
//	reopen, reboot, close      the next daemon, on the same boot or another
//	reboot on disk             the same, and the records of the old boot are there
//	garble FILE                a record of the pod or container is destroyed
//	leak ID                    the world holds what no record knows
//	wait DURATION
func TestStories(t *testing.T) {
	quiet(t)
	files, err := filepath.Glob(filepath.Join("testdata", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var told string
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				defer m.end()
				told = m.tell(string(text))
			})
			golden(t, path, told)
		})
	}
}

// tell plays a story and returns it as it went.
func (m *machine) tell(story string) string {
	var b strings.Builder
	for _, scene := range strings.Split(strings.TrimSpace(story), "\n\n") {
		script, _, _ := strings.Cut(scene, "----\n")
		script = strings.TrimSuffix(script, "----")
		var answers []string
		for line := range strings.Lines(script) {
			fmt.Fprintln(&b, strings.TrimSpace(line))
			if f := strings.Fields(line); len(f) > 0 && f[0] != "#" {
				if answer := m.command(f); answer != "" {
					answers = append(answers, strings.Join(f, " ")+": "+answer)
				}
			}
		}
		if !slices.ContainsFunc(strings.Split(strings.TrimSpace(script), "\n"), func(l string) bool { return !strings.HasPrefix(l, "#") }) {
			fmt.Fprintln(&b)
			continue // words for the reader
		}
		fmt.Fprintln(&b, "----")
		for _, answer := range answers {
			fmt.Fprintln(&b, answer)
		}
		b.WriteString(m.show())
		fmt.Fprintln(&b)
	}
	return strings.TrimSpace(b.String()) + "\n"
}

// command performs one command and returns what was wrong, if anything was.
func (m *machine) command(f []string) string {
	m.t.Helper()
	switch f[0] {
	case "fail":
		m.intend(func(n int, name string, after bool) fate {
			if name == strings.Join(f[1:], " ") && !after {
				return failNow
			}
			return proceed
		})
	case "mend":
		m.intend(nil)
	case "crash":
		m.intend(func(n int, name string, after bool) fate {
			if name == strings.Join(f[2:], " ") && after == (f[1] == "after") {
				return crashNow
			}
			return proceed
		})
	case "reopen":
		m.crash()
		m.reopen()
	case "close":
		m.Close()
		m.reopen()
	case "reboot":
		m.reboot(len(f) > 1)
	case "exit":
		code, err := strconv.Atoi(f[2])
		if err != nil {
			err = oci.ErrExitUnknown
		}
		m.world.end(m.container(f[1]).ID(), code, err)
	case "garble":
		dir := ""
		if p := m.pod(f[1]); p != nil {
			dir = p.dir
		} else {
			dir = m.container(f[1]).dir
		}
		if err := os.WriteFile(filepath.Join(dir, recordFile), []byte("{\x00"), 0o600); err != nil {
			m.t.Fatal(err)
		}
	case "leak":
		id := newID()
		m.world.mu.Lock()
		m.world.pods[id], m.world.attached[id], m.world.roots[id] = true, true, true
		m.world.mu.Unlock()
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			m.t.Fatal(err)
		}
		pass(d)
	default:
		return m.rpc(f)
	}
	synctest.Wait()
	return ""
}

func (m *machine) rpc(f []string) string {
	err, answered := m.call(func(ctx context.Context) error {
		switch f[0] {
		case "run":
			_, err := m.runPod(ctx, f[1])
			return err
		case "stop-pod":
			return m.pod(f[1]).Stop(ctx)
		case "remove-pod":
			return m.pod(f[1]).Remove(ctx)
		case "create":
			_, err := m.pod(f[1]).CreateContainer(ctx, containerConfig(f[2]))
			return err
		case "start":
			return m.container(f[1]).Start(ctx)
		case "stop":
			grace, err := time.ParseDuration(f[2])
			if err != nil {
				m.t.Fatal(err)
			}
			return m.container(f[1]).Stop(ctx, grace)
		case "remove":
			return m.container(f[1]).Remove(ctx)
		}
		m.t.Fatalf("no command %q", f)
		return nil
	})
	synctest.Wait()
	switch {
	case !answered:
		return "no answer"
	case err != nil:
		return m.named(err.Error())
	}
	return ""
}

// named puts names for ids.
func (m *machine) named(text string) string {
	m.Pods.mu.Lock()
	defer m.Pods.mu.Unlock()
	for id, p := range m.pods {
		text = strings.ReplaceAll(text, id, p.config.GetMetadata().GetName())
	}
	for id, c := range m.containers {
		text = strings.ReplaceAll(text, id, c.config.GetMetadata().GetName())
	}
	return text
}

// show is what clients see, and what the world holds.
func (m *machine) show() string {
	if m.crashed() {
		return "the daemon is dead\n"
	}
	var b strings.Builder
	pods := m.List()
	slices.SortFunc(pods, func(a, b *Pod) int { return strings.Compare(a.config.Metadata.Name, b.config.Metadata.Name) })
	for _, p := range pods {
		s := p.Status()
		fmt.Fprintln(&b, strings.TrimSpace(fmt.Sprint("pod ", s.Metadata.Name, " ", s.State, " ", s.Network.Ip)))
		containers := p.Containers()
		slices.SortFunc(containers, func(a, b *Container) int {
			return strings.Compare(a.config.Metadata.Name, b.config.Metadata.Name)
		})
		for _, c := range containers {
			s := c.Status()
			line := fmt.Sprint("  ", s.Metadata.Name, " ", s.State)
			if s.FinishedAt != 0 {
				line += fmt.Sprint(" ", s.ExitCode, " ", s.Reason)
			}
			if s.Message != "" {
				line += ": " + s.Message
			}
			fmt.Fprintln(&b, line)
		}
	}
	if n := len(m.pods) - len(pods); n > 0 {
		fmt.Fprintln(&b, "unseen pods:", n)
	}
	fmt.Fprintln(&b, "held:", m.held())
	return b.String()
}
