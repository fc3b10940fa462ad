package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"
)

// errNoFiles means that ConfDir has no network configuration, not even an
// invalid one.
var errNoFiles = errors.New("no network configuration")

// A network is one network configuration, valid and whole: list.Bytes holds
// every plugin, so it can be stored and used again when the files are gone.
type network struct {
	list    *libcni.NetworkConfigList
	source  string // the file that it was read from, or that it is the built-in one
	builtin bool
}

// choose finds the network for a pod that may or may not use the built-in one.
// Its error is a sentence for a node operator.
func (n *Network) choose(builtin bool) (*network, error) {
	found, err := n.operatorNetwork()
	switch {
	case !errors.Is(err, errNoFiles):
		return found, err
	case builtin || n.Builtin.Load():
		return n.builtinNetwork()
	}
	return nil, fmt.Errorf("%w in %s, and the built-in network is off: install the cluster's network plugin, or set network.builtin = true", errNoFiles, n.ConfDir)
}

// operatorNetwork is the first valid configuration of ConfDir by file name.
func (n *Network) operatorNetwork() (*network, error) {
	files, err := libcni.ConfFiles(n.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("look for network configuration: %w", err)
	}
	if len(files) == 0 {
		return nil, errNoFiles
	}
	slices.Sort(files)
	var invalid []error
	for _, file := range files {
		list, err := readNetwork(file)
		if err != nil {
			invalid = append(invalid, fmt.Errorf("network configuration %s: %w", file, err))
			continue
		}
		n.reportInvalid(invalid)
		return &network{list: list, source: file}, nil
	}
	return nil, errors.Join(invalid...)
}

// reportInvalid logs what is wrong with files that another one stands in for,
// once until it changes.
func (n *Network) reportInvalid(invalid []error) {
	var complaint string
	if err := errors.Join(invalid...); err != nil {
		complaint = err.Error()
	}
	n.reportedMu.Lock()
	defer n.reportedMu.Unlock()
	if complaint != "" && complaint != n.reported {
		klog.Warningf("Skipped an invalid file: %s", complaint)
	}
	n.reported = complaint
}

// readNetwork reads a .conflist file, or a file with one plugin as a list of one.
func readNetwork(file string) (*libcni.NetworkConfigList, error) {
	list, err := parseFile(file)
	if err != nil {
		return nil, err
	}
	if err := validate(list); err != nil {
		return nil, err
	}
	return inline(list)
}

func parseFile(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	single, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	wrapped, err := json.Marshal(map[string]any{
		"name":       single.Network.Name,
		"cniVersion": single.Network.CNIVersion,
		"plugins":    []json.RawMessage{data},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(wrapped)
}

// inline writes plugins that libcni read from files of their own (spec 1.1,
// loadOnlyInlinedPlugins) into the list itself.
func inline(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	whole := map[string]json.RawMessage{}
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	all, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	whole["plugins"] = all
	whole["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

// validate checks what libcni would notice only after some plugins have run, or
// never.
func validate(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("name %q: %w", list.Name, err)
	}
	if list.Name == builtinName {
		return fmt.Errorf("name %q is that of the built-in network: choose another", list.Name)
	}
	if list.CNIVersion != "" && !slices.Contains(version.All.SupportedVersions(), list.CNIVersion) {
		return fmt.Errorf("cniVersion %q is none of %s", list.CNIVersion, strings.Join(version.All.SupportedVersions(), ", "))
	}
	for _, name := range pluginNames(list) {
		if err := validatePluginName(name); err != nil {
			return err
		}
	}
	return nil
}

// validatePluginName refuses a type that leads out of the plugin directories
// (CVE-2021-20206).
func validatePluginName(name string) error {
	if name == "" || strings.ContainsAny(name, "/\\\x00") || strings.Contains(name, "..") {
		return fmt.Errorf("plugin type %q: must be the plain name of a file", name)
	}
	return nil
}

// pluginNames are the types of the list's plugins and of the IPAM plugins that
// those run, in order.
func pluginNames(list *libcni.NetworkConfigList) []string {
	var names []string
	for _, p := range list.Plugins {
		names = append(names, p.Network.Type)
		if ipam := p.Network.IPAM.Type; ipam != "" {
			names = append(names, ipam)
		}
	}
	return names
}

// findPlugins looks whether all that net needs is installed.
func (n *Network) findPlugins(net *network) error {
	for _, name := range pluginNames(net.list) {
		if _, err := findPlugin(name, n.BinDirs); err != nil {
			return fmt.Errorf("network %q (%s): %w", net.list.Name, net.source, err)
		}
	}
	if net.builtin {
		_, err := findNFT()
		return err
	}
	return nil
}

// findPlugin returns the path of the first executable file of that name.
func findPlugin(name string, dirs []string) (string, error) {
	if err := validatePluginName(name); err != nil {
		return "", err
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("plugin %q not found in %s: %w", name, strings.Join(dirs, ", "), fs.ErrNotExist)
}
