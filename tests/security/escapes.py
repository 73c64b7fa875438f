"""What a hostile function tries: 300 attempts to get out of its sandbox.

Each is the body of a handler that returns something true once it got what it must not have. It
is told in `at` what there is outside: files with canaries, ports that listen, the process of
Weft's. Numbers of system calls are those of x86_64.
"""

from dataclasses import dataclass

PRELUDE = """
import asyncio, ctypes, gc, mmap, os, re, resource, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def sys_(number, *arguments):
    return libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
def worked(number, *arguments):
    return sys_(number, *arguments) >= 0
def read(path):
    with open(path, "rb") as file:
        return file.read(4096).decode("latin-1")
def handler(at):
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. `plain` ones do no harm where nothing confines them, and work there."""

    name: str
    body: str
    plain: bool = False

    @property
    def source(self) -> str:
        """The function's source."""
        return PRELUDE + "".join(f"    {line}\n" for line in self.body.strip().splitlines())


def _each(
    name: str, template: str, values: tuple[str, ...], *, plain: bool = False
) -> list[Attempt]:
    return [Attempt(f"{name} {v}", template.replace("$", v), plain) for v in values]


_PLAIN_FILES = ("/etc/passwd", "/proc/self/status", "/proc/self/maps", "/proc/1/cmdline")
_FILES = (
    *("/etc/shadow", "/etc/resolv.conf", "/etc/machine-id", "/etc/ssl/openssl.cnf"),
    *("/proc/self/environ", "/proc/self/mem", "/proc/1/environ", "/proc/1/maps"),
    *("/proc/kallsyms", "/proc/kcore", "/proc/net/tcp", "/proc/net/unix", "/proc/cpuinfo"),
    *("/proc/sys/kernel/hostname", "/proc/self/root/etc/passwd", "/proc/self/cwd/../../keys/nkey"),
    *("/sys/class/net/lo/address", "/sys/kernel/mm/transparent_hugepage/enabled", "/dev/mem"),
    *("/dev/kmsg", "/dev/vda", "/dev/tty", "/dev/zero", "/dev/urandom", "/dev/null", "/dev/fd/0"),
    *("/usr/bin/env", "/bin/sh", "/var/log/dpkg.log", "/etc/profile"),
)
_FOLDERS = (
    *("/", "/etc", "/proc", "/proc/1/fd", "/sys", "/dev", "/dev/shm", "/dev/pts", "/tmp", "/root"),
    *("/home", "/var", "/run", "..", "../..", "/usr/bin"),
)
_SECRET = [
    ("open", "return read(at['secret'])", True),
    ("os.open", "return os.read(os.open(at['secret'], os.O_RDONLY), 99).decode()", True),
    ("O_RDWR", "return os.read(os.open(at['secret'], os.O_RDWR), 99).decode()", True),
    ("symlink", "os.symlink(at['secret'], 'l'); return read('l')", True),
    ("hard link", "os.link(at['secret'], 'h'); return read('h')", False),
    (
        "chain of symlinks",
        "os.symlink(os.path.dirname(at['secret']), 'd'); "
        "return read('d/' + os.path.basename(at['secret']))",
        True,
    ),
    ("rename", "os.rename(at['scratch_of_another'], 'r'); return read('r/left')", False),
    ("relative path", "return read(os.path.relpath(at['secret']))", True),
    (
        "chdir",
        "os.chdir(os.path.dirname(at['secret'])); return read(os.path.basename(at['secret']))",
        True,
    ),
    (
        "O_PATH and openat",
        "d = os.open(os.path.dirname(at['secret']), os.O_PATH)\n"
        "return os.read(os.open(os.path.basename(at['secret']), 0, dir_fd=d), 99).decode()",
        True,
    ),
    (
        "O_PATH reopened",
        "p = os.open(at['secret'], os.O_PATH); return read(f'/proc/self/fd/{p}')",
        True,
    ),
    (
        "fopen",
        "libc.fopen.restype = ctypes.c_void_p\n"
        "return bool(libc.fopen(at['secret'].encode(), b'r'))",
        True,
    ),
    ("open(2)", "return worked(2, at['secret'].encode(), 0, 0)", True),
    (
        "openat2(2)",
        "how = ctypes.create_string_buffer(24)\n"
        "return worked(437, -100, at['secret'].encode(), how, 24)",
        True,
    ),
    (
        "mmap",
        "f = os.open(at['secret'], os.O_RDONLY); "
        "return mmap.mmap(f, 0, prot=mmap.PROT_READ)[:9].decode()",
        True,
    ),
    (
        "sendfile",
        "f = os.open(at['secret'], os.O_RDONLY); r, w = os.pipe(); return os.sendfile(w, f, 0, 9)",
        True,
    ),
    (
        "a thread",
        "got = []\nt = threading.Thread(target=lambda: got.append(read(at['secret'])))\n"
        "t.start(); t.join(); return got",
        True,
    ),
    ("io.open_code", "import io; return io.open_code(at['secret']).read().decode()", True),
    (
        "import",
        "sys.path.insert(0, os.path.dirname(at['secret'])); import outside; return outside.SECRET",
        True,
    ),
    (
        "runpy",
        "import runpy; return runpy.run_path(os.path.dirname(at['secret']) + '/outside.py')"
        "['SECRET']",
        True,
    ),
    (
        "sqlite",
        "import sqlite3; c = sqlite3.connect('s'); "
        "c.execute('ATTACH ? AS o', (at['database'],)); "
        "return c.execute('SELECT * FROM o.t').fetchall()",
        True,
    ),
    ("folder", "return os.listdir(os.path.dirname(at['secret']))", True),
    ("glob", "import glob; return glob.glob(os.path.dirname(at['secret']) + '/*')", True),
    (
        "the parent's environment",
        "return at['canary_name'] in read(f\"/proc/{at['pid']}/environ\")",
        False,
    ),
    ("the parent's memory map", "return read(f\"/proc/{at['pid']}/maps\")", False),
    ("the parent's command", "return read(f\"/proc/{at['pid']}/cmdline\")", True),
    ("the parent's files", "return os.listdir(f\"/proc/{at['pid']}/fd\")", True),
    ("the parent's root", "return read(f\"/proc/{at['pid']}/root\" + at['secret'])", False),
    ("its own parent", "return read(f'/proc/{os.getppid()}/maps')", True),
    ("another's folder", "return os.listdir(at['scratch_of_another'])", True),
    ("the machine's hosts", "return read('/etc/hosts') == at['hosts']", True),
    ("the machine's mounts", "return at['mounts'] in read('/proc/mounts')", True),
    ("NATS key", "return read(at['nats_key'])", True),
    ("master key", "return read(at['master_key'])", True),
]
_WRITES = [
    ("open w", "open(at['victim'], 'w'); return 1", False),
    ("open a", "open(at['victim'], 'a').write('x'); return 1", False),
    ("os.open trunc", "os.open(at['victim'], os.O_WRONLY | os.O_TRUNC); return 1", False),
    ("new file", "open(at['outside'] + '/new', 'w'); return 1", True),
    ("new file in /tmp", "open('/tmp/weft-escaped', 'w'); return 1", False),
    ("new file in /dev/shm", "open('/dev/shm/weft-escaped', 'w'); return 1", False),
    ("folder", "os.mkdir(at['outside'] + '/made'); return 1", True),
    ("symlink", "os.symlink('x', at['outside'] + '/link'); return 1", True),
    ("fifo", "os.mkfifo(at['outside'] + '/fifo'); return 1", True),
    ("fifo in its folder", "os.mkfifo('fifo'); return 1", True),
    ("device in its folder", "os.mknod('m', 0o20600, os.makedev(1, 1)); return 1", False),
    ("block device", "os.mknod('b', 0o60600, os.makedev(8, 0)); return 1", False),
    ("hard link out", "open('f', 'w'); os.link('f', at['outside'] + '/hard'); return 1", True),
    ("rename out", "open('f', 'w'); os.rename('f', at['outside'] + '/moved'); return 1", True),
    ("truncate", "os.truncate(at['victim'], 0); return 1", False),
    ("unlink", "os.unlink(at['victim']); return 1", False),
    ("rmdir", "os.rmdir(at['empty']); return 1", False),
    ("rename over", "open('f', 'w'); os.replace('f', at['victim']); return 1", False),
    ("chmod", "os.chmod(at['secret'], 0o644); return 1", True),
    ("fchmodat", "return worked(268, -100, at['secret'].encode(), 0o644)", True),
    ("chmod of a folder", "os.chmod(os.path.dirname(at['secret']), 0o777); return 1", False),
    ("chown", "os.chown(at['secret'], 0, 0); return 1", False),
    ("utime", "os.utime(at['victim'], (0, 0)); return 1", False),
    ("setxattr", "os.setxattr(at['victim'], 'user.x', b'x'); return 1", False),
    ("getxattr", "return worked(191, at['victim'].encode(), b'user.a', None, 0)", True),
    ("listxattr", "return worked(194, at['victim'].encode(), None, 0)", True),
    (
        "inotify",
        "i = sys_(253); return worked(254, i, os.path.dirname(at['secret']).encode(), 0xfff)",
        True,
    ),
    (
        "flock of another's file",
        "import fcntl; f = open(at['victim']); fcntl.flock(f, 6); return 1",
        True,
    ),
    ("standard library", "open(os.__file__, 'a'); return 1", False),
    ("interpreter", "open(sys.executable or '/usr/bin/python3', 'r+b'); return 1", False),
    ("sticky bits", "open('f', 'w'); os.chmod('f', 0o4755); return 1", True),
    ("through a symlink", "os.symlink(at['outside'], 'o'); open('o/via', 'w'); return 1", True),
]
_NETWORK = [
    ("tcp", "socket.create_connection(('127.0.0.1', at['tcp']), 2); return 1", True),
    (
        "tcp over IPv6",
        "s = socket.socket(socket.AF_INET6); s.connect(('::1', at['tcp'])); return 1",
        False,
    ),
    ("metadata", "socket.create_connection(('169.254.169.254', 80), 1); return 1", False),
    (
        "metadata over urllib",
        "import urllib.request\n"
        "return urllib.request.urlopen('http://169.254.169.254/latest/', timeout=1).read(1)",
        False,
    ),
    (
        "http to Weft",
        "import urllib.request\n"
        "return urllib.request.urlopen(f\"http://127.0.0.1:{at['tcp']}/\", timeout=1).read(1)",
        False,
    ),
    (
        "udp",
        "s = socket.socket(type=socket.SOCK_DGRAM); "
        "return s.sendto(b'x', ('127.0.0.1', at['tcp']))",
        True,
    ),
    (
        "dns",
        "s = socket.socket(type=socket.SOCK_DGRAM); return s.sendto(b'x' * 12, ('8.8.8.8', 53))",
        False,
    ),
    ("getaddrinfo", "return socket.getaddrinfo('weft.invalid.example', 80)", False),
    ("gethostbyname", "return socket.gethostbyname('rebind.example')", False),
    ("unix socket", "s = socket.socket(socket.AF_UNIX); s.connect(at['unix']); return 1", True),
    (
        "abstract socket",
        "s = socket.socket(socket.AF_UNIX); s.connect(at['abstract']); return 1",
        False,
    ),
    (
        "unix datagram",
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(at['unix']); return 1",
        False,
    ),
    ("listen", "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); return 1", True),
    ("bind unix", "s = socket.socket(socket.AF_UNIX); s.bind('s'); return 1", True),
    (
        "asyncio",
        "async def c():\n    await asyncio.open_connection('127.0.0.1', at['tcp'])\n"
        "asyncio.run(c()); return 1",
        True,
    ),
    ("a pair over IP", "return worked(53, 2, 1, 0, ctypes.create_string_buffer(8))", False),
    ("connect of a pair", "a, b = socket.socketpair(); a.connect(at['unix']); return 1", False),
    (
        "sendto from a pair",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "return a.sendto(b'x', at['unix_datagram'])",
        True,
    ),
    (
        "sendmsg from a pair",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "return a.sendmsg([b'x'], [], 0, at['unix_datagram'])",
        True,
    ),
    (
        "abstract from a pair",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "return a.sendto(b'x', at['abstract_datagram'])",
        True,
    ),
    (
        "sendmmsg from a pair",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "m = ctypes.create_string_buffer(64); return worked(307, a.fileno(), m, 1, 0)",
        False,
    ),
    (
        "socket by int 0x80",
        "code = bytes.fromhex('b867010000bb02000000b901000000ba00000000cd80c3')\n"
        "m = mmap.mmap(-1, 4096, prot=7); m.write(code)\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "return f() >= 0",
        False,
    ),
    ("socket by an x32 number", "return worked(0x40000000 + 41, 2, 1, 0)", False),
    ("socket of raw packets", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW); return 1", False),
    (
        "ping",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); return 1",
        False,
    ),
]
_FAMILIES = tuple(str(number) for number in range(1, 46) if number not in (2, 27, 28))
_PROCESSES = [
    ("fork", "p = os.fork()\nif not p: os._exit(0)\nreturn 1", True),
    ("fork(2)", "p = sys_(57)\nif not p: os._exit(0)\nreturn p > 0", True),
    ("vfork(2) by a thread", "return sys_(58, 0) > 0", False),
    ("clone(2)", "p = sys_(56, 17, 0, 0, 0, 0)\nif not p: os._exit(0)\nreturn p > 0", True),
    (
        "clone(2) with a file table",
        "p = sys_(56, 0x400 | 17, 0, 0, 0, 0)\nif not p: os._exit(0)\nreturn p > 0",
        True,
    ),
    (
        "clone(2) as a sibling",
        "p = sys_(56, 0x8000 | 17, 0, 0, 0, 0)\nif not p: os._exit(0)\nreturn p > 0",
        False,
    ),
    (
        "clone(2) in a user namespace",
        "p = sys_(56, 0x10000000 | 17, 0, 0, 0, 0)\nif not p: os._exit(0)\nreturn p > 0",
        False,
    ),
    (
        "clone(2) in a pid namespace",
        "p = sys_(56, 0x20000000 | 17, 0, 0, 0, 0)\nif not p: os._exit(0)\nreturn p > 0",
        False,
    ),
    (
        "clone3(2)",
        "a = ctypes.create_string_buffer(struct.pack('QQQQQQQQ', 0, 0, 0, 0, 17, 0, 0, 0))\n"
        "p = sys_(435, a, 64)\nif not p: os._exit(0)\nreturn p > 0",
        True,
    ),
    ("forkpty", "import pty; p, f = pty.fork()\nif not p: os._exit(0)\nreturn 1", False),
    ("system", "return os.system('true') == 0", True),
    ("popen", "return os.popen('echo x').read()", True),
    ("subprocess", "import subprocess; return subprocess.run(['/bin/true']).returncode == 0", True),
    ("posix_spawn", "return os.posix_spawn('/bin/true', ['true'], {})", True),
    (
        "multiprocessing",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=int)\n"
        "p.start(); return 1",
        True,
    ),
    ("execve", "os.execv('/bin/sh', ['sh', '-c', 'exit 0'])", False),
    (
        "execve of its interpreter",
        "libc.execve(os.path.realpath('/proc/self/exe').encode(), None, "
        "None); return worked(59, b'/bin/true', 0, 0)",
        False,
    ),
    ("execveat", "return worked(322, -100, b'/bin/true', 0, 0, 0)", False),
    (
        "memfd and exec",
        "f = os.memfd_create('x'); os.write(f, open('/bin/true','rb').read()); "
        "os.execve(f, ['x'], {})",
        False,
    ),
    ("memfd_create", "return os.memfd_create('x') > 0", True),
    ("memfd_secret", "return worked(447, 0)", False),
    ("daemon", "if os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nreturn 1", False),
    ("setsid", "return worked(112)", False),
    ("setpgid", "return worked(109, 0, 0)", False),
]
_SIGNALS = [
    ("to the parent", "os.kill(os.getppid(), 0); return 1", True),
    ("to Weft", "os.kill(at['pid'], 0); return 1", True),
    ("that stops Weft", "os.kill(at['pid'], signal.SIGCONT); return 1", True),
    ("to all", "return worked(62, -1, 0)", False),
    ("to its group", "os.killpg(os.getpgrp(), 0); return 1", True),
    ("to init", "os.kill(1, 0); return 1", True),
    ("by tgkill", "return worked(234, at['pid'], at['pid'], 0)", True),
    ("by tkill", "return worked(200, at['pid'], 0)", True),
    ("by pidfd", "p = sys_(434, at['pid'], 0); return worked(424, p, 0, 0, 0)", True),
    (
        "by rt_sigqueueinfo",
        "i = ctypes.create_string_buffer(128); return worked(129, at['pid'], 0, i)",
        False,
    ),
    (
        "by F_SETOWN",
        "import fcntl; a, b = socket.socketpair(); "
        "fcntl.fcntl(a, fcntl.F_SETOWN, at['pid']); return 1",
        True,
    ),
    ("by a lease", "import fcntl; f = open('f', 'w'); fcntl.fcntl(f, 1024, 1); return 1", False),
    ("by dnotify", "import fcntl; d = os.open('.', 0); fcntl.fcntl(d, 1026, 0xff); return 1", True),
    ("that stops itself", "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)", False),
    ("raised", "signal.raise_signal(signal.SIGSTOP); time.sleep(60)", False),
]
_KERNEL = {
    "ptrace": "101, 16, at['pid'], 0, 0",
    "ptrace itself": "101, 0, 0, 0, 0",
    "process_vm_readv": "310, at['pid'], 0, 0, 0, 0, 0",
    "process_vm_writev": "311, at['pid']",
    "kcmp": "312, at['pid'], os.getpid(), 0, 0, 0",
    "pidfd_open": "434, at['pid'], 0",
    "pidfd_getfd": "438, 0, 0, 0",
    "process_madvise": "440, 0, 0, 0, 0, 0",
    "process_mrelease": "448, 0, 0",
    "get_robust_list": "274, at['pid'], b'x' * 8, b'x' * 8",
    "mount": "165, b'none', b'.', b'tmpfs', 0, 0",
    "umount2": "166, b'/proc', 2",
    "bind mount": "165, b'/etc', b'.', 0, 4096, 0",
    "pivot_root": "155, b'.', b'.'",
    "chroot": "161, b'.'",
    "setns": "308, 0, 0",
    "open_tree": "428, -100, b'/etc', 1",
    "fsopen": "430, b'tmpfs', 0",
    "fsmount": "432, 0, 0, 0",
    "move_mount": "429, 0, 0, 0, 0, 0",
    "mount_setattr": "442, -100, b'.', 0, 0, 0",
    "fspick": "433, -100, b'/', 0",
    "unshare users": "272, 0x10000000",
    "unshare files": "272, 0x400",
    "unshare mounts": "272, 0x20000",
    "unshare network": "272, 0x40000000",
    "unshare pids": "272, 0x20000000",
    "unshare ipc": "272, 0x8000000",
    "io_uring_setup": "425, 4, ctypes.create_string_buffer(120)",
    "io_uring_enter": "426, 0, 0",
    "bpf": "321, 0, ctypes.create_string_buffer(64), 64",
    "userfaultfd": "323, 0",
    "perf_event_open": "298, ctypes.create_string_buffer(112), 0, -1, -1, 0",
    "keyctl": "250, 0, -3, 0",
    "add_key": "248, b'user', b'x', b'y', 1, -3",
    "request_key": "249, b'user', b'x', 0, 0",
    "init_module": "175, b'x', 1, b''",
    "finit_module": "313, 0, b'', 0",
    "delete_module": "176, b'x', 0",
    "kexec_load": "246, 0",
    "reboot": "169, 0xfee1dead, 672274793, 0, 0",
    "swapon": "167, b'x', 0",
    "swapoff": "168, b'x'",
    "syslog": "103, 10, 0, 0",
    "acct": "163, 0",
    "quotactl": "179, 0x80000100, 0, 0, 0",
    "personality": "135, 0x40000",
    "iopl": "172, 3",
    "ioperm": "173, 0, 1, 1",
    "clock_settime": "227, 0, b'x' * 16",
    "settimeofday": "164, 0, b'x' * 8",
    "adjtimex": "159, ctypes.create_string_buffer(208)",
    "sethostname": "170, b'x', 1",
    "setdomainname": "171, b'x', 1",
    "vhangup": "153",
    "fanotify_init": "300, 0, 0",
    "inotify_init": "253",
    "inotify_init1": "294, 0",
    "mq_open": "240, b'weft', 66, 0o600, 0",
    "mq_unlink": "241, b'weft'",
    "shmget": "29, 0, 4096, 0o1600",
    "semget": "64, 0, 1, 0o1600",
    "msgget": "68, 0, 0o1600",
    "seccomp": "317, 2, 0, 0",
    "landlock": "444, 0, 0, 1",
    "capset": "126, b'x' * 8, b'x' * 24",
    "setuid": "105, 0",
    "setgid": "106, 0",
    "setgroups": "116, 0, 0",
    "setresuid": "117, 0, 0, 0",
    "setreuid": "113, 0, 0",
    "setpriority": "141, 0, at['pid'], 0",
    "ioprio_set": "251, 1, 0, 0",
    "sched_setaffinity": "203, at['pid'], 8, b'\\3' * 8",
    "sched_setattr": "314, 0, b'x' * 48, 0",
    "sched_setscheduler": "144, at['pid'], 0, b'x' * 4",
    "sync": "162",
    "syncfs": "306, 0",
    "limits of Weft": "302, at['pid'], 7, 0, ctypes.create_string_buffer(16)",
    "move_pages": "279, at['pid'], 0, 0, 0, 0, 0",
    "migrate_pages": "256, at['pid'], 0, 0, 0",
    "mlockall": "151, 1",
    "vmsplice": "278, 0, 0, 0, 0",
    "splice": "275, 0, 0, 0, 0, 0, 0",
    "name_to_handle_at": "303, -100, b'/etc', b'\\x80' + b'\\0' * 135, b'x' * 8, 0",
    "open_by_handle_at": "304, -100, b'x' * 136, 0",
    "lookup_dcookie": "212, 0, 0, 0",
    "prctl: no death signal": "157, 1, 0, 0, 0, 0",
    "prctl: dumpable": "157, 4, 1, 0, 0, 0",
    "prctl: tracer": "157, 0x59616d61, at['pid'], 0, 0, 0",
    "prctl: keepcaps": "157, 8, 1, 0, 0",
    "prctl: subreaper": "157, 36, 1, 0, 0, 0",
    "modify_ldt": "154, 0, 0, 0",
    "uselib": "134, 0",
    "restarted filter": "157, 22, 2, 0, 0, 0",
    "set_mempolicy": "238, 0, 0, 0",
    "a number that there isn't": "1000",
    "a terminal's input": "16, 0, 0x5412, b'x'",
}
_PLAIN_CALLS = {
    *(
        "setuid",
        "setgid",
        "pidfd_open",
        "inotify_init",
        "inotify_init1",
        "shmget",
        "semget",
        "msgget",
    ),
    *("prctl: dumpable", "prctl: subreaper", "prctl: no death signal", "limits of Weft"),
}
_INHERITED = [
    ("environment", "return [n for n in os.environ if n not in ('LC_CTYPE',)]", False),
    (
        "environment by libc",
        "e = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ'); i = 0\n"
        "found = []\nwhile e[i]: found.append(e[i]); i += 1\n"
        "return [x.decode() for x in found if b'WEFT' in x or at['canary_name'].encode() in x]",
        False,
    ),
    (
        "descriptors",
        "found = []\nfor n in range(3, 1024):\n    try: found.append(os.fstat(n).st_mode)\n"
        "    except OSError: pass\nreturn len(found) > 1",
        False,
    ),
    (
        "descriptors that read files",
        "import stat\nfor n in range(1024):\n"
        "    try: mode = os.fstat(n).st_mode\n    except OSError: continue\n"
        "    if stat.S_ISREG(mode) or stat.S_ISDIR(mode): return n + 1",
        False,
    ),
    (
        "modules",
        "return [m for m in sys.modules if m.split('.')[0] in "
        "('mesh', 'services', 'weft', 'grpc', 'nats', 'cryptography', 'sandlock')]",
        False,
    ),
    ("import of mesh", "import mesh; return 1", False),
    ("import of site-packages", "import grpc; return 1", False),
    (
        "objects",
        "return [1 for o in gc.get_objects() if isinstance(o, dict) "
        "and at['canary_name'] in o and o is not at]",
        False,
    ),
    (
        "frames",
        "f = sys._getframe()\nwhile f:\n    if at['canary_name'] in f.f_globals: return 1\n"
        "    f = f.f_back",
        False,
    ),
    (
        "capabilities",
        "h = struct.pack('Ii', 0x20080522, 0); d = ctypes.create_string_buffer(24)\n"
        "libc.capget(h, d); return any(d.raw[:8])",
        False,
    ),
    ("more memory", "resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); return 1", False),
    ("more files", "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)); return 1", False),
    ("more processor time", "resource.setrlimit(resource.RLIMIT_CPU, (900, 900)); return 1", False),
    ("larger files", "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)); return 1", False),
    ("core dumps", "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1)); return 1", False),
    ("standard input", "return sys.stdin.read()", False),
    ("host name", "return os.uname().nodename == at['host_name']", False),
]
_EXHAUSTION = [
    ("endless loop", "while True: pass"),
    (
        "endless loop that heeds no signal",
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
    ),
    ("endless loop in C", "return len(re.findall('(a+)+$', 'a' * 64 + 'b'))"),
    ("endless sleep", "time.sleep(900)"),
    ("endless wait", "threading.Event().wait()"),
    ("closed descriptors", "os.closerange(0, 1024); time.sleep(900)"),
    (
        "busy threads",
        "def b():\n    while True: pass\n"
        "for _ in range(8): threading.Thread(target=b).start()\nb()",
    ),
    (
        "thread bomb",
        "threading.stack_size(65536)\n"
        "for _ in range(5000): threading.Thread(target=time.sleep, args=(900,)).start()\nreturn 1",
    ),
    ("fork bomb", "while True: os.fork()"),
    ("fork bomb by syscalls", "while sys_(57) >= 0: pass\nraise OSError('refused')"),
    ("memory bomb", "return len(bytearray(1 << 30))"),
    ("memory bomb in pieces", "kept = []\nwhile True: kept.append(bytearray(1 << 20))"),
    ("memory bomb by mmap", "return [mmap.mmap(-1, 1 << 28) for _ in range(8)] != []"),
    (
        "memory bomb by libc",
        "libc.malloc.restype = ctypes.c_void_p; return bool(libc.malloc(1 << 31))",
    ),
    ("memory bomb of a text", "return len('x' * (1 << 31))"),
    ("memory bomb of a number", "return len(str(1 << (1 << 33)))"),
    ("huge recursion", "sys.setrecursionlimit(10 ** 9)\ndef f(): return f()\nreturn f()"),
    ("huge recursion in C", "x = []\nfor _ in range(10 ** 6): x = [x]\nreturn repr(x)"),
    ("stack bomb", "ctypes.memset(ctypes.byref(ctypes.c_int()), 0, 1 << 28); return 1"),
    ("output flood", "while True: print('x' * 4096)"),
    ("output flood on stderr", "while True: sys.stderr.write('x' * 4096)"),
    ("output flood by write(2)", "while True: os.write(1, b'x' * 65536)"),
    ("result flood", "return 'x' * (1 << 24)"),
    ("result that isn't JSON", "return {1j}"),
    ("result that refers to itself", "x = []; x.append(x); return x"),
    ("result nested too deep", "x = []\nfor _ in range(10 ** 5): x = [x]\nreturn x"),
    ("files", "for n in range(99): open(f'f{n}', 'wb').write(b'x' * (1 << 20))\ntime.sleep(900)"),
    ("one file", "open('f', 'wb').write(b'x' * (1 << 26)); return 1"),
    (
        "a sparse file",
        "os.truncate('f', 1 << 40) if os.path.exists('f') else "
        "open('f', 'wb').truncate(1 << 40); return 1",
    ),
    (
        "deleted files",
        "kept = []\nfor n in range(50):\n    f = open(f'f{n}', 'wb'); os.unlink(f'f{n}')\n"
        "    f.write(b'x' * (1 << 20)); f.flush(); kept.append(f)\ntime.sleep(900)",
    ),
    (
        "files in deep folders",
        "for _ in range(15): os.mkdir('d' * 250); os.chdir('d' * 250)\n"
        "for n in range(50): open(f'f{n}', 'wb').write(b'x' * (1 << 20))\ntime.sleep(900)",
    ),
    (
        "files in a folder that can't be listed",
        "os.mkdir('d', 0o300)\n"
        "for n in range(50): open(f'd/f{n}', 'wb').write(b'x' * (1 << 20))\ntime.sleep(900)",
    ),
    (
        "deleted files in memory",
        "libc.mmap.argtypes = (*(ctypes.c_long,) * 2, *(ctypes.c_int,) * 3, ctypes.c_long)\n"
        "for n in range(50):\n    f = open('f', 'wb+'); f.write(b'x' * (1 << 20)); f.flush()\n"
        "    libc.mmap(0, 4096, 1, 1, f.fileno(), 0); f.close(); os.unlink('f')\n"
        "time.sleep(900)",
    ),
    (
        "deleted files on their way to a socket",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\nfor n in range(50):\n"
        "    f = open('f', 'wb+'); f.write(b'x' * (1 << 20)); f.flush()\n"
        "    socket.send_fds(a, [b'x'], [f.fileno()]); f.close(); os.unlink('f')\nreturn n",
    ),
    (
        "deleted files of a thread that outlives the first",
        "def keep():\n    kept = []\n    time.sleep(0.1)\n    for n in range(50):\n"
        "        kept.append(os.open('.', os.O_RDWR | os.O_TMPFILE))\n"
        "        os.write(kept[-1], b'x' * (1 << 20))\n    time.sleep(900)\n"
        "threading.Thread(target=keep).start(); sys_(60, 0)",
    ),
    (
        "files by fallocate",
        "for n in range(999): os.posix_fallocate(os.open(f'f{n}', 66), 0, 4 << 20)\nreturn n",
    ),
    ("nested folders", "for _ in range(1200): os.mkdir('d'); os.chdir('d')\ntime.sleep(900)"),
    ("many files", "for n in range(10 ** 6): open(f'f{n}', 'w').close()\nreturn 1"),
    ("open files", "return len([os.dup(1) for _ in range(5000)])"),
    ("pipes", "return len([os.pipe() for _ in range(5000)])"),
    ("crash", "ctypes.string_at(1); return 1"),
    ("exit without a word", "os._exit(0)"),
    ("answer of another size", "os.write(max(n for n in range(99) if alive(n)), b'\\xff' * 64)"),
    (
        "answer that isn't one",
        "os.write(max(n for n in range(99) if alive(n)), b'\\0\\0\\0\\4null'); os._exit(0)",
    ),
]
_ALIVE = """def alive(n):
    try: return bool(os.fstat(n))
    except OSError: return False
"""


_HARSH = ("exhaustion", "process", "signal", "inherited", "network")


def batched(tried: list[Attempt], count: int) -> list[list[Attempt]]:
    """The attempts, so many together in one process where they leave each other alone."""
    mild = [attempt for attempt in tried if not attempt.name.startswith(_HARSH)]
    batches = [mild[start : start + count] for start in range(0, len(mild), count)]
    return batches + [[attempt] for attempt in tried if attempt.name.startswith(_HARSH)]


def batch_source(batch: list[Attempt]) -> str:
    """A function that tries all of them: it returns what each got, by its name."""
    parts = [PRELUDE.removesuffix("def handler(at):\n")]
    for number, attempt in enumerate(batch):
        lines = attempt.body.strip().splitlines()
        parts.append(f"def a{number}(at):\n" + "".join(f"    {line}\n" for line in lines))
    names = ", ".join(f"{attempt.name!r}: a{n}" for n, attempt in enumerate(batch))
    parts.append(
        f"def handler(at):\n    got = {{}}\n    for name, run in {{{names}}}.items():\n"
        "        try: got[name] = run(at)\n        except Exception: got[name] = None\n"
        "    return got\n"
    )
    return "".join(parts)


def attempts() -> list[Attempt]:
    """All of them."""
    found = _each("file", "return read('$')", _PLAIN_FILES, plain=True)
    found += _each("file", "return read('$')", _FILES)
    found += _each("folder", "return os.listdir('$')", _FOLDERS)
    found += _each("socket of family", "socket.socket($); return 1", ("2",), plain=True)
    for family in _FAMILIES:
        body = "return any(worked(41, $, kind, 0) for kind in (1, 2, 3, 5))"
        found += _each("socket of family", body, (family,))
    groups = (("secret by", _SECRET), ("write by", _WRITES), ("network by", _NETWORK))
    for group, entries in (*groups, ("process by", _PROCESSES), ("signal", _SIGNALS)):
        found += [Attempt(f"{group} {name}", body, plain) for name, body, plain in entries]
    for name, arguments in _KERNEL.items():
        found.append(
            Attempt(f"call of {name}", f"return worked({arguments})", name in _PLAIN_CALLS)
        )
    found += [Attempt(f"inherited {name}", body) for name, body, _ in _INHERITED]
    return found + [Attempt(f"exhaustion: {name}", _ALIVE + body) for name, body in _EXHAUSTION]
