package runner

import (
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Guards against a keeper that fills the tmpfs of the records with complaints.
func TestLogIsBounded(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	logger := log.New(Log(f), "", 0)
	line := strings.Repeat("x", 1000)
	for range 3 * maxLog / len(line) {
		logger.Print(line)
	}
	logger.Print("last")
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > maxLog+2*len(line) || !strings.HasSuffix(string(text), line+"\nlast\n") {
		t.Errorf("the log has %d bytes and ends with %.20q", len(text), text[max(0, len(text)-20):])
	}
}
