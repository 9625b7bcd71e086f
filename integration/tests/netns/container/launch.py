"""Starts a program as a container runtime starts the chart's container: namespaces, a read-only root, the given mounts,
few capabilities, a filter of system calls, no new privileges.

launch.py <plan.json> <program>; the plan holds
  root           an empty directory for the container's root
  binds          [[<from>, <to>, <writable>], ...], in order
  capabilities   those that are kept
  group          of the program; its user is 0
  seccomp        path of a profile as container runtimes read it
The caller's network namespace and cgroup are the container's. Signals are passed on, the exit status comes back.
Leaves what a kubelet does before (volumes) to the caller.
"""

import ctypes
import json
import os
import signal
import sys

import seccomp

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID = 0x08000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_PTRACE": 19, "SYS_ADMIN": 21}
CAPABILITY_LAST = 40

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    """A libc function; its error is an exception."""
    if getattr(libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(source, target, kind=None, flags=0):
    text = lambda value: None if value is None else os.fsencode(value)
    call("mount", text(source), text(target), text(kind), ctypes.c_ulong(flags), None)


def place(path, like):
    """A mount point of the same sort as `like`."""
    if os.path.isdir(like):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "a").close()


def bind(source, target, writable):
    place(target, source)
    mount(source, target, flags=MS_BIND | MS_REC)
    if not writable:
        mount(None, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def build(root, binds):
    """The container's file system: the image, what every container gets, the pod's volumes."""
    mount(None, "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID)
    for name in ["usr", "etc", "bin", "lib", "lib64", "sbin"]:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            bind(f"/{name}", f"{root}/{name}", False)
    for name in ["null", "zero", "full", "random", "urandom"]:
        bind(f"/dev/{name}", f"{root}/dev/{name}", True)
    for name in ["proc", "sys", "tmp", "old"]:
        os.makedirs(f"{root}/{name}")
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    bind(f"{root}/proc/sys", f"{root}/proc/sys", False)
    mount("sysfs", f"{root}/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("cgroup", f"{root}/sys/fs/cgroup", "cgroup2", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for source, target, writable in binds:
        bind(source, root + target, writable)
    call("syscall", SYS_PIVOT_ROOT, os.fsencode(root), os.fsencode(f"{root}/old"))
    os.chdir("/")
    call("umount2", b"/old", MNT_DETACH)
    mount(None, "/", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def profile(path):
    """The filter of a profile; calls that the library does not know do not exist here."""
    actions = {"SCMP_ACT_ALLOW": lambda rule: seccomp.ALLOW, "SCMP_ACT_ERRNO": lambda rule: seccomp.ERRNO(rule.get("errnoRet", 1))}
    with open(path) as file:
        text = json.load(file)
    made = seccomp.SyscallFilter(defaction=actions[text["defaultAction"]]({"errnoRet": text["defaultErrnoRet"]}))
    for rule in text["syscalls"]:
        arguments = []
        for argument in rule.get("args", []):
            assert argument["op"] == "SCMP_CMP_MASKED_EQ", argument
            arguments.append(seccomp.Arg(argument["index"], seccomp.MASKED_EQ, argument["value"], argument["valueTwo"]))
        for name in rule["names"]:
            try:
                number = seccomp.resolve_syscall(seccomp.Arch(), name)
            except ValueError:
                continue
            if number >= 0:
                made.add_rule(actions[rule["action"]](rule), name, *arguments)
    return made


def contain(plan, program):
    """Becomes the program, in the container."""
    call("unshare", CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC)
    filters = profile(plan["seccomp"])
    build(plan["root"], plan["binds"])
    kept = {CAPABILITIES[name] for name in plan["capabilities"]}
    for number in range(CAPABILITY_LAST + 1):
        if number not in kept:
            call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
    os.setgroups([])
    os.setgid(plan["group"])
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    filters.load()  # sets no_new_privs as well
    os.execve(program, [program, "proxy", "ztunnel"], os.environ)


def main():
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    call("unshare", CLONE_NEWPID)
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        try:
            contain(plan, sys.argv[2])
        finally:
            # whatever stood in the way has been told on stderr
            sys.excepthook(*sys.exc_info())
            os._exit(125)
    for number in [signal.SIGTERM, signal.SIGINT]:
        signal.signal(number, lambda number, frame: os.kill(child, number))
    # a container's cgroup holds the container alone
    with open(f"{plan['cgroups']}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    os.close(go)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


main()
