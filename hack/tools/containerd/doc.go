// Command containerd is containerd, from its own module, for comparisons with it.
//
// The OCI runtime spec of a pause container always has the version that containerd
// was built with, which older runtimes refuse. A version in the variable
// CONTAINERD_OCI_VERSION is written into all specs instead; nothing else differs.
package main
