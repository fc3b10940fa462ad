package sandbox

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxID is the greatest uid and gid that Kubernetes accepts: beyond it, numbers
// turn negative in programs that hold them in 32 bits.
const maxID = 1<<31 - 1

// maxGroups is the kernel's bound of a process's groups (NGROUPS_MAX).
const maxGroups = 1 << 16

// maxAccounts bounds the lines that are looked at in an image's /etc/passwd and
// /etc/group, and maxAccount one of them, in bytes: a group of 20,000 users has room.
const (
	maxAccounts = 1 << 18
	maxAccount  = 1 << 20
)

// findUser returns who the container's process is. The config says it, else the
// image does, else it is root. Digits always mean a number, never a name that
// looks like one: the kubelet has judged runAsNonRoot by the number.
//
// The kubelet puts the image's user into the config, but CRI has no place for the
// image's group. So the group of the image counts for its own user, whoever names
// that one, unless the config has a group.
func findUser(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, root *os.File) (specs.User, error) {
	field := "image.config.User"
	user, group, hasGroup := strings.Cut(imageUser, ":")
	askedField, asked := userOf(sc)
	if asked == "" && hasGroup && (user == "" || group == "") {
		return specs.User{}, invalid(field, "%q must be USER or USER:GROUP", imageUser)
	}
	user = cmp.Or(user, "0")
	if asked != "" && !sameUser(asked, user) {
		field, user, group = askedField, asked, ""
	}
	if sc.GetRunAsGroup() != nil {
		group = strconv.FormatInt(sc.GetRunAsGroup().GetValue(), 10)
	}
	merge := sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge
	found, err := lookUp(root, user, group, merge)
	if err != nil {
		return specs.User{}, invalid(field, "%v", err)
	}
	// The primary group is among them: else a file that it is denied could be
	// read by giving the group up.
	groups := append([]uint32{found.GID}, found.AdditionalGids...)
	for _, gid := range sc.GetSupplementalGroups() {
		groups = append(groups, uint32(gid)) // in range: validated
	}
	if found.AdditionalGids = unique(groups); len(found.AdditionalGids) > maxGroups {
		return specs.User{}, invalid(securityField+"supplemental_groups", "with those of the pod and of the image there are %d groups, at most %d are possible", len(found.AdditionalGids), maxGroups)
	}
	return found, nil
}

// userOf is the user that sc asks for, and the field that does; "" for none.
func userOf(sc *runtimeapi.LinuxContainerSecurityContext) (field, user string) {
	if sc.GetRunAsUser() != nil {
		return securityField + "run_as_user", strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10)
	}
	return securityField + "run_as_username", sc.GetRunAsUsername()
}

// sameUser compares numbers by their values, and names by their letters.
func sameUser(a, b string) bool {
	idA, numericA, errA := parseID(a)
	idB, numericB, errB := parseID(b)
	if numericA && numericB && errA == nil && errB == nil {
		return idA == idB
	}
	return a == b
}

// withPodGroups adds to sc the groups that the pod gives to the first process of
// each of its containers. Either of them may insist on no others.
func withPodGroups(sc *runtimeapi.LinuxContainerSecurityContext, pod *runtimeapi.LinuxSandboxSecurityContext) *runtimeapi.LinuxContainerSecurityContext {
	return &runtimeapi.LinuxContainerSecurityContext{
		RunAsUser:                sc.GetRunAsUser(),
		RunAsUsername:            sc.GetRunAsUsername(),
		RunAsGroup:               sc.GetRunAsGroup(),
		SupplementalGroups:       slices.Concat(sc.GetSupplementalGroups(), pod.GetSupplementalGroups()),
		SupplementalGroupsPolicy: max(sc.GetSupplementalGroupsPolicy(), pod.GetSupplementalGroupsPolicy()),
	}
}

// lookUp resolves a user and an optional group, each a number or a name, in the
// accounts of the image; merge asks for the groups that have the user as a member.
//
// A number is good without an account. So accounts beyond the bounds of findLine are
// an error only to who asks for a name.
func lookUp(rootDir *os.File, user, group string, merge bool) (found specs.User, err error) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", rootDir.Fd()))
	if err != nil {
		return found, fmt.Errorf("open root: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()

	uid, numeric, err := parseID(user)
	if err != nil {
		return found, err
	}
	var account []string
	if !numeric || group == "" || merge {
		account, err = findLine(root, "etc/passwd", 4, func(f []string) bool {
			return numeric && f[2] == strconv.FormatUint(uint64(uid), 10) || !numeric && f[0] == user
		})
	}
	if numeric && errors.Is(err, errTooManyAccounts) {
		err = nil
	}
	if err != nil {
		return found, err
	}
	switch {
	case account != nil:
		if uid, err = accountID(account[2]); err == nil {
			found.GID, err = accountID(account[3])
		}
		if err != nil {
			return found, fmt.Errorf("user %q in the image's /etc/passwd: %w", user, err)
		}
	case !numeric:
		return found, fmt.Errorf("no user %q in the image's /etc/passwd", user)
	}
	found.UID = uid
	if group != "" {
		if found.GID, err = lookUpGroup(root, group); err != nil {
			return found, err
		}
	}
	if merge && account != nil {
		found.AdditionalGids, err = memberships(root, account[0])
	}
	if numeric && errors.Is(err, errTooManyAccounts) {
		err = nil
	}
	return found, err
}

func lookUpGroup(root *os.Root, group string) (uint32, error) {
	gid, numeric, err := parseID(group)
	if err != nil || numeric {
		return gid, err
	}
	line, err := findLine(root, "etc/group", 3, func(f []string) bool { return f[0] == group })
	if err != nil {
		return 0, err
	}
	if line == nil {
		return 0, fmt.Errorf("no group %q in the image's /etc/group", group)
	}
	return accountID(line[2])
}

// memberships are the groups that name user as a member, also with an error those
// that were found before it.
func memberships(root *os.Root, user string) ([]uint32, error) {
	var gids []uint32
	_, err := findLine(root, "etc/group", 4, func(f []string) bool {
		if gid, err := accountID(f[2]); err == nil && slices.Contains(strings.Split(f[3], ","), user) {
			gids = append(gids, gid)
		}
		return false
	})
	return gids, err
}

// parseID reads a number; numeric is false for what is a name.
func parseID(text string) (id uint32, numeric bool, err error) {
	if strings.Trim(text, "0123456789") != "" {
		return 0, false, nil
	}
	id, err = accountID(text)
	return id, true, err
}

func accountID(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > maxID {
		return 0, fmt.Errorf("id %q is not between 0 and %d", text, maxID)
	}
	return uint32(n), nil
}

// errTooManyAccounts: a file was not read to its end.
var errTooManyAccounts = fmt.Errorf("has more than %d lines, or one of more than %d bytes, which is all that is read", maxAccounts, maxAccount)

// findLine returns the first line of a colon-separated file in root that has at
// least n fields and matches; nil if there is none, or no file. It reads as it
// looks, and holds one line.
func findLine(root *os.Root, name string, n int, match func([]string) bool) (found []string, err error) {
	f, err := openInside(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the image's /%s: %w", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxAccount)
	for seen := 0; lines.Scan(); seen++ {
		if seen == maxAccounts {
			return nil, fmt.Errorf("the image's /%s %w", name, errTooManyAccounts)
		}
		if f := strings.Split(lines.Text(), ":"); len(f) >= n && match(f) {
			return f, nil
		}
	}
	err = lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = errTooManyAccounts
	}
	if err != nil {
		return nil, fmt.Errorf("the image's /%s %w", name, err)
	}
	return nil, nil
}

// openInside opens a regular file to read, with symlinks resolved as they would be
// inside root. What is not a regular file is not even opened: an image may hold a
// device or a FIFO there.
func openInside(root *os.Root, name string) (*os.File, error) {
	name, err := resolveInside(root, name)
	if err != nil {
		return nil, err
	}
	return root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
}

// resolveInside follows symlinks as chroot would, absolute ones too, to a
// regular file.
func resolveInside(root *os.Root, name string) (string, error) {
	const maxLinks = 40
	at, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		if next == ".." { // above the root is the root
			next = "."
		}
		info, err := root.Lstat(next)
		if err != nil {
			return "", err
		}
		switch rest = rest[1:]; {
		case info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", fmt.Errorf("more than %d symlinks", maxLinks)
			}
			target, err := root.Readlink(next)
			if err != nil {
				return "", err
			}
			if path.IsAbs(target) {
				at = "."
			}
			rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
		case len(rest) == 0 && !info.Mode().IsRegular():
			return "", fmt.Errorf("is no regular file")
		default:
			at = next
		}
	}
	return at, nil
}

// unique drops what comes again, in place.
func unique(ids []uint32) []uint32 {
	seen := map[uint32]bool{}
	return slices.DeleteFunc(ids, func(id uint32) bool {
		again := seen[id]
		seen[id] = true
		return again
	})
}
