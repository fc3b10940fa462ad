package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestOneDaemonServesARunDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	first, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := lockRunDir(dir); err == nil {
		second.Close()
		t.Error("a second daemon got the same run directory")
	} else if !strings.Contains(err.Error(), "another berthd serves "+dir) {
		t.Errorf("the error does not say what is wrong: %v", err)
	}
	first.Close()
	third, err := lockRunDir(dir)
	if err != nil {
		t.Fatalf("the lock outlived its holder: %v", err)
	}
	third.Close()
}
