#!/bin/bash
# Shows Berth at work: a pod from a registry to its last trace. `make quickstart`
# builds and installs what this needs. It uses directories of its own, so a Berth
# that runs on this machine already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

run=/run/berth-quickstart     # records, sockets, pinned namespaces
data=/var/lib/berth-quickstart # images, addresses
socket=$run/berth.sock
logs=/var/log/berth/pods       # where `berth run` keeps what containers print
pid_berthd='' pid_registry='' before='' done=''

# --- how it talks ------------------------------------------------------------

step_number=0
step() { echo; echo "$((++step_number)). $*"; }
note() { echo "   $*"; }
indent() { sed 's/^/     /'; }
fail() { echo >&2; echo "quickstart: $*" >&2; exit 1; }

# berth ARG... is the operator's tool; berth_ shows the command and what it says.
berth() { bin/berth --socket "$socket" "$@"; }
berth_() {
	echo "   \$ berth $*"
	output=$(berth "$@" 2>&1) || fail "berth $1 failed: $output"
	[ -z "$output" ] || indent <<<"$output"
}

# within SECONDS COMMAND... asks again until COMMAND is true.
within() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $deadline ] || return 1
		sleep 0.1
	done
}

# --- what it looks at --------------------------------------------------------

# alive PID is false for a zombie: whoever should collect it is not our matter.
alive() { [ -n "$1" ] && grep -q '^State:[[:space:]]*[^ZX]' "/proc/$1/status" 2>/dev/null; }
gone() { ! alive "$1"; }
children() { cat "/proc/$1"/task/*/children 2>/dev/null; }
answers() { curl -sSf -m 5 --noproxy '*' "http://$1/"; }

# keeper is the pid of the keeper of our run directory. Its one other process,
# the runner, and every container are its children.
keeper() {
	local p
	for p in /proc/[0-9]*; do
		if [ "$({ tr '\0' ' ' <"$p/cmdline"; } 2>/dev/null)" = "$PWD/bin/berth-keeper $run " ] && alive "${p#/proc/}"; then
			echo "${p#/proc/}"
		fi
	done
}
runner() {
	local p
	for p in $(children "$(keeper)"); do
		[ "$(readlink "/proc/$p/exe")" = "$PWD/bin/berth-keeper" ] && alive "$p" && echo "$p"
	done
	return 0
}
containers() {
	local p
	for p in $(children "$(keeper)"); do
		[ "$(readlink "/proc/$p/exe")" = "$PWD/bin/berth-keeper" ] || ! alive "$p" || echo "$p"
	done
}

# machine lists everything that a pod could leave behind.
machine() {
	cut -d' ' -f5 /proc/self/mountinfo | grep -v '^/run/netns$' | sed 's/^/mount /'
	find /run/netns -type f 2>/dev/null | sed 's/^/network namespace /'
	ip -o link | awk '{ print "link " $2 }'
	ip -o address | awk '{ print "address " $2 " " $4 }'
	nft list tables 2>/dev/null | sed 's/^/nftables /'
	find /sys/fs/cgroup -type d -name '*berth*' 2>/dev/null | sed 's/^/cgroup /'
	local p
	for p in /proc/[0-9]*; do
		case $(readlink "$p/exe") in
		"$PWD"/bin/* | "$PWD"/build/tools/* | /usr/local/libexec/berth/*) alive "${p#/proc/}" && echo "process ${p#/proc/}" ;;
		esac
	done
	find "$run" "$data" "$logs" -maxdepth 1 2>/dev/null | sed 's/^/file /' || true
}

# left lists what was not there before.
left() { comm -13 <(echo "$before") <(machine | sort); }
unchanged() { [ -z "$(left)" ]; }

# --- what it starts and ends -------------------------------------------------

start_registry() {
	local port=5000
	while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
	registry=127.0.0.1:$port
	cat >"$data/registry.yml" <<-END
		version: 0.1
		log: {level: error, accesslog: {disabled: true}}
		storage: {filesystem: {rootdirectory: $data/registry}}
		http: {addr: $registry}
	END
	OTEL_TRACES_EXPORTER=none build/tools/registry serve "$data/registry.yml" >"$data/registry.log" 2>&1 &
	pid_registry=$!
	within 10 answers "$registry" || fail "the registry does not answer: $(cat "$data/registry.log")"
}

launch_berthd() {
	bin/berthd --config "$data/berthd.toml" >>"$data/berthd.log" 2>&1 &
	pid_berthd=$!
}

start_berthd() {
	launch_berthd
	within 20 berth status || fail "berthd does not answer"
}

end_process() { # PID [SIGNAL]
	kill "${2--TERM}" "$1" 2>/dev/null || true
	within 20 gone "$1" || kill -KILL "$1"
	wait "$1" 2>/dev/null || true
}

# end stops what was started, in the order that leaves nothing: a keeper ends when
# it is asked to and has nothing to keep.
end() {
	local p
	[ -z "$pid_berthd" ] || end_process "$pid_berthd"
	for p in $(containers); do end_process "$p" -KILL; done
	for p in $(keeper); do end_process "$p"; done
	[ -z "$pid_registry" ] || end_process "$pid_registry"
	pid_berthd='' pid_registry=''
	awk -v dir="$run" -v data="$data" '$5 == dir || index($5, dir "/") == 1 || index($5, data "/") == 1 { print $5 }' /proc/self/mountinfo |
		sort -r | while read -r point; do umount -l "$point"; done
	rm -rf "$run" "$data"
	# Parents that Berth keeps for the next pod; another Berth's are not empty.
	rmdir "$logs" "${logs%/*}" /sys/fs/cgroup/{,*/}berth{,.runtimes} 2>/dev/null || true
}

# leave runs at every exit.
leave() {
	[ -z "$done" ] || return 0
	echo "quickstart: cleaning up" >&2
	[ ! -s "$data/berthd.log" ] || { echo "berthd's last words:"; tail -n 30 "$data/berthd.log"; } >&2
	if [ -n "$pid_berthd" ]; then # only berthd knows all of what a pod has
		alive "$pid_berthd" || launch_berthd
		within 20 berth status || true
		timeout 60 bin/berth --socket "$socket" rm -f web job >/dev/null 2>&1 || true
	fi
	end
	unchanged || printf 'quickstart: left behind:\n%s\n' "$(left)" >&2
}

# --- the show ----------------------------------------------------------------

[ "$(id -u)" = 0 ] || fail "needs root"
[ -z "$(keeper)" ] || fail "another quick start runs: keeper $(keeper)"
before=$(machine | sort)
trap leave EXIT
trap 'exit 130' HUP INT TERM
mkdir -p "$run" "$data/cni"

step "A registry on this machine, with an image made of Debian's busybox"
start_registry
image=$registry/library/busybox:debian
build/tools/mkimage -busybox "$(command -v busybox)" "$image" >/dev/null
note "$image; a reference to any public registry works the same way"

step "berthd, with the built-in network"
cat >"$data/berthd.toml" <<-END
	socket = "$socket"
	run_dir = "$run"
	data_dir = "$data"

	[network]
	conf_dir = "$data/cni"
	builtin = true
END
indent <"$data/berthd.toml"
start_berthd
berth_ version
berth_ status

step "An image, pulled over HTTP"
berth_ pull "$image"
berth_ images

step "A container that ends: its output and its exit code"
echo "   \$ berth run --rm --name job $image sh -c 'echo the answer is 42; exit 3'"
code=0
output=$(berth run --rm --name job "$image" sh -c 'echo the answer is 42; exit 3' 2>&1) || code=$?
indent <<<"$output"
[ "$code $output" = "3 the answer is 42" ] || fail "expected the answer and exit code 3, got code $code"
note "exit code $code"

step "A web server in a pod of its own"
berth_ run -d --name web "$image" httpd -f -v -p 80 -h /www
berth_ ps
address=$(berth ps | awk '$1 == "web" { print $7 }')
within 10 answers "$address" || fail "http://$address/ does not answer"
page=$(answers "$address")
note "http://$address/ says: $page"
berth_ logs web
[ -n "$output" ] || fail "the web server's log is empty"
berth_ exec web hostname
[ "$output" = web ] || fail "the pod's host name is $output"

step "kill -9 of berthd and of the runner: everything but the keeper and the container"
container=$(containers)
old_runner=$(runner)
note "pids: berthd $pid_berthd, keeper $(keeper), runner $old_runner, web server $container"
kill -KILL "$pid_berthd" "$old_runner"
wait "$pid_berthd" 2>/dev/null || true
alive "$container" || fail "the web server died with berthd"
page=$(answers "$address") || fail "http://$address/ does not answer without berthd"
note "without berthd, http://$address/ says: $page"
start_berthd
within 10 test -n "$(runner)" || fail "there is no new runner"
note "pids: berthd $pid_berthd, keeper $(keeper), runner $(runner), web server $(containers)"
[ "$(containers)" = "$container" ] || fail "the web server is another process"
berth_ ps
berth_ exec web cat /proc/1/comm
requests=$(berth logs web 2>&1 | grep -c 'response:200' || true)
answers "$address" >/dev/null || fail "http://$address/ does not answer after the restart"
logged() { [ "$(berth logs web 2>&1 | grep -c 'response:200')" = $((requests + 1)) ]; }
within 10 logged || fail "the log does not go on after the restart"
note "its log goes on: $((requests + 1)) answers in it"

step "Stop and remove"
berth_ stop -t 1 web
gone "$container" || fail "the web server is still there"
berth_ ps -a
berth_ rm web
berth_ ps -a

step "Nothing is left"
end
within 10 unchanged || fail "this is left behind:"$'\n'"$(left)"
note "no process, mount, network namespace, link, address, packet filter, cgroup or file"
done=1
