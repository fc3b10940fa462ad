package sandbox

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cni"
	"berth/oci"
)

// From what the kernel counts to CRI's messages. What was not counted stays nil:
// a zero would be believed.

func cpuUsage(u oci.Usage) *runtimeapi.CpuUsage {
	if u.CPU == nil {
		return nil
	}
	usage := &runtimeapi.CpuUsage{
		Timestamp:            u.At.UnixNano(),
		UsageCoreNanoSeconds: number64(uint64(u.CPU.Usage.Nanoseconds())),
		Psi:                  psi(u.Pressure.CPU),
	}
	if u.NanoCores != nil {
		usage.UsageNanoCores = number64(*u.NanoCores)
	}
	return usage
}

func memoryUsage(u oci.Usage) *runtimeapi.MemoryUsage {
	m := u.Memory
	if m == nil {
		return nil
	}
	return &runtimeapi.MemoryUsage{
		Timestamp:       u.At.UnixNano(),
		WorkingSetBytes: number64(m.WorkingSet),
		AvailableBytes:  available(m.Limit, m.WorkingSet),
		UsageBytes:      number64(m.Usage),
		RssBytes:        number64(m.RSS),
		PageFaults:      number64(m.MinorFaults),
		MajorPageFaults: number64(m.MajorFaults),
		Psi:             psi(u.Pressure.Memory),
	}
}

func swapUsage(u oci.Usage) *runtimeapi.SwapUsage {
	if u.Swap == nil {
		return nil
	}
	return &runtimeapi.SwapUsage{
		Timestamp:          u.At.UnixNano(),
		SwapAvailableBytes: available(u.Swap.Limit, u.Swap.Usage),
		SwapUsageBytes:     number64(u.Swap.Usage),
	}
}

// available is nil where nothing limits it but the node.
func available(limit, used uint64) *runtimeapi.UInt64Value {
	if limit == oci.NoLimit {
		return nil
	}
	return number64(limit - min(used, limit))
}

// ioUsage is nil without PSI: CRI has nothing else of it.
func ioUsage(u oci.Usage) *runtimeapi.IoUsage {
	if u.Pressure.IO == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: u.At.UnixNano(), Psi: psi(u.Pressure.IO)}
}

func psi(p *oci.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiStats{Full: psiData(p.Full), Some: psiData(p.Some)}
}

func psiData(s oci.Stall) *runtimeapi.PsiData {
	return &runtimeapi.PsiData{Total: uint64(s.Total.Nanoseconds()), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}

// networkUsage lists all interfaces, the default one too: the kubelet's summary has
// those of the list. It is nil without an interface: the kubelet reads the default one
// unchecked.
func networkUsage(u oci.PodUsage) *runtimeapi.NetworkUsage {
	if len(u.Interfaces) == 0 {
		return nil
	}
	usual := max(0, slices.IndexFunc(u.Interfaces, func(i oci.Interface) bool { return i.Name == cni.IfName }))
	usage := &runtimeapi.NetworkUsage{Timestamp: u.At.UnixNano()}
	for i, one := range u.Interfaces {
		if i == usual {
			usage.DefaultInterface = interfaceUsage(one)
		}
		usage.Interfaces = append(usage.Interfaces, interfaceUsage(one))
	}
	return usage
}

func interfaceUsage(i oci.Interface) *runtimeapi.NetworkInterfaceUsage {
	return &runtimeapi.NetworkInterfaceUsage{
		Name:     i.Name,
		RxBytes:  number64(i.RxBytes),
		RxErrors: number64(i.RxErrors),
		TxBytes:  number64(i.TxBytes),
		TxErrors: number64(i.TxErrors),
	}
}

func number64(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
