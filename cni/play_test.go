package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A part is the configuration of the plugin "play": what it does on which
// command. A command without an entry succeeds.
type part struct {
	CNIVersion string            `json:"cniVersion"`
	Log        string            `json:"log"` // a file that each call adds a line to: command and id
	On         map[string]string `json:"on"`
	PrevResult json.RawMessage   `json:"prevResult"`
	Valid      json.RawMessage   `json:"cni.dev/valid-attachments"`
}

// play is the plugin "play". Like all that the test binary plays it ends by
// syscall.Exit: with the race detector, os.Exit takes a second.
func play() {
	if len(os.Args) > 1 && os.Args[1] == "hang" {
		select {}
	}
	var p part
	stdin, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = json.Unmarshal(stdin, &p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "play: config:", err)
		syscall.Exit(1)
	}
	command := os.Getenv("CNI_COMMAND")
	p.log(command, os.Getenv("CNI_CONTAINERID"))
	switch action := p.On[command]; action {
	case "":
	case "fail":
		fmt.Fprintln(os.Stderr, "play: looked for the switch")
		fmt.Printf(`{"cniVersion":%q,"code":100,"msg":"no route to the switch","details":"port 7"}`, p.CNIVersion)
		syscall.Exit(1)
	case "crash":
		fmt.Fprintln(os.Stderr, strings.Repeat("x", 2*maxStderr)+"panic: out of cheese")
		syscall.Exit(2)
	case "hang":
		fmt.Fprintln(os.Stderr, "play: waiting for the switch")
		select {}
	case "fork and hang":
		p.fork(false)
		fmt.Fprintln(os.Stderr, "play: waiting for the switch")
		select {}
	case "fork":
		p.fork(false)
	case "fork a session":
		p.fork(true)
	case "flood":
		for {
			fmt.Println(strings.Repeat("y", 1<<16))
		}
	case "garbage":
		fmt.Print("this is no result")
		syscall.Exit(0)
	case "no address":
		fmt.Printf(`{"cniVersion":%q}`, p.CNIVersion)
		syscall.Exit(0)
	case "environment":
		p.log(strings.Join(os.Environ(), "\n"))
	default:
		fmt.Fprintf(os.Stderr, "play: unknown action %q", action)
		syscall.Exit(1)
	}
	if command == "GC" {
		p.log("valid", string(p.Valid))
	}
	if command == "ADD" {
		p.answer()
	}
	syscall.Exit(0)
}

// answer passes the result on, or invents one.
func (p part) answer() {
	if p.PrevResult != nil {
		os.Stdout.Write(p.PrevResult)
		return
	}
	fmt.Printf(`{"cniVersion":%q,"ips":[{"address":"192.0.2.77/24"}]}`, p.CNIVersion)
}

// fork starts a process that holds the plugin's stdout and stderr.
func (p part) fork(session bool) {
	cmd := exec.Command("/proc/self/exe", "hang")
	cmd.Args[0] = "play"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: session}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "play: fork:", err)
		syscall.Exit(1)
	}
	p.log("forked", fmt.Sprint(cmd.Process.Pid))
}

func (p part) log(words ...string) {
	if p.Log == "" {
		return
	}
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, strings.TrimSpace(strings.Join(words, " ")))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "play: log:", err)
		syscall.Exit(1)
	}
	f.Close()
}

// victimEnv holds the JSON of a scene: this process then is a berthd that is
// killed in it.
const victimEnv = "BERTH_CNI_TEST_VICTIM"

// A scene is one moment to be killed at: before or after a plugin's command.
type scene struct {
	Plugin, Command string
	After           bool
	Real            string // directory of the reference plugins
	Network         struct {
		BinDirs  []string
		CacheDir string
		Subnets  []netip.Prefix
	}
	Pod Pod
}

// sceneFile lies beside the plugins that wrap plays.
const sceneFile = "scene.json"

// victim adds the pod and deletes it again, unless it is killed before.
func victim() {
	var s scene
	if err := json.Unmarshal([]byte(os.Getenv(victimEnv)), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		syscall.Exit(1)
	}
	n := &Network{BinDirs: s.Network.BinDirs, CacheDir: s.Network.CacheDir, Subnets: s.Network.Subnets, Timeout: time.Minute}
	_, err := n.Add(context.Background(), s.Pod)
	if err == nil && s.Command == "" {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if err == nil {
		err = n.Del(context.Background(), s.Pod)
	}
	fmt.Fprintln(os.Stderr, "victim survived:", err)
	syscall.Exit(1)
}

// wrap plays a reference plugin: it runs the real one, and kills berthd at the
// scene's moment. It goes on afterwards, as orphans do.
func wrap() {
	dir, name := filepath.Split(os.Args[0])
	var s scene
	data, err := os.ReadFile(filepath.Join(dir, sceneFile))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "wrap:", err)
		syscall.Exit(1)
	}
	now := s.Plugin == name && s.Command == os.Getenv("CNI_COMMAND")
	if now && !s.After {
		killBerthd()
	}
	real := exec.Command(filepath.Join(s.Real, name))
	real.Stdin, real.Stdout, real.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = real.Run()
	if now && s.After {
		killBerthd()
	}
	if err != nil {
		syscall.Exit(1)
	}
	syscall.Exit(0)
}

// killBerthd kills the ancestor that is no plugin.
func killBerthd() {
	pid := os.Getppid()
	for {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return
		}
		if !strings.Contains(string(environ), "CNI_COMMAND=") {
			syscall.Kill(pid, syscall.SIGKILL)
			return
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		var state string
		fmt.Sscan(after, &state, &pid)
	}
}
