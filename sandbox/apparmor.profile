# What a container is confined to that asks for nothing else.
#
# Its capabilities, devices and system calls are limited elsewhere. This keeps a
# root with more of those than usual from what belongs to the whole node: the
# kernel's settings, the mounts that hide them, and the processes of others.

abi <abi/3.0>,

profile berth-default flags=(attach_disconnected, mediate_deleted) {
  capability,
  file,
  network,
  unix,

  # Whoever may send a signal to it otherwise, does. It reaches its own kind, also
  # those who have kept the profile of crun or runc beside this one, which confines
  # nothing: without new privileges they could not drop it.
  signal (receive),
  signal (send) peer=berth-default{,//&*},
  ptrace (read, readby, trace, tracedby) peer=berth-default{,//&*},

  deny mount,
  deny umount,
  deny pivot_root,

  # Processes have directories of digits; all else in /proc is the kernel's.
  deny /proc/[^0-9]** wkl,
  deny /proc/{kcore,sysrq-trigger} rwklmx,
  deny /sys/** wkl,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/{,**} r,
}
