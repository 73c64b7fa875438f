"""The system calls that a function may make, as a filter of the kernel's (seccomp).

It lists what is allowed, and refuses all else with EPERM, so that a call that a newer kernel
brings is refused, too. A function is one process: no fork and no exec, hence nothing that
could outlive it. It has no sockets but pairs within itself, sends no signals, and changes
no modes, owners, times, limits or priorities, for which Landlock has no rules. It takes up
room by writing only, and hands no file over to a socket, where nobody could count its bytes.
"""

import platform
import struct
from collections.abc import Iterator, Sequence

from mesh.errors import FailedPrecondition

_ALLOWED = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69
pwritev:296:70 lseek:8:62 close:3:57 close_range:436:436 dup:32:23 dup2:33: dup3:292:24 pipe:22:
pipe2:293:59 open:2: openat:257:56 creat:85: stat:4: lstat:6: fstat:5:80 newfstatat:262:79
statx:332:291 access:21: faccessat:269:48 faccessat2:439:439 readlink:89: readlinkat:267:78
getcwd:79:17 chdir:80:49 fchdir:81:50 getdents:78: getdents64:217:61 mkdir:83: mkdirat:258:34
rmdir:84: unlink:87: unlinkat:263:35 rename:82: renameat:264:38 renameat2:316:276 link:86:
linkat:265:37 symlink:88: symlinkat:266:36 truncate:76:45 ftruncate:77:46 fsync:74:82
fdatasync:75:83 flock:73:32 fadvise64:221:223 copy_file_range:326:285 sendfile:40:71 umask:95:166

mmap:9:222 munmap:11:215 mremap:25:216 mprotect:10:226 brk:12:214 madvise:28:233

poll:7: ppoll:271:73 select:23: pselect6:270:72 epoll_create:213: epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232: epoll_pwait:281:22 epoll_pwait2:441:441 eventfd2:290:19
timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 alarm:37: setitimer:38:103
getitimer:36:102 pause:34: nanosleep:35:101 clock_nanosleep:230:115 futex:202:98
futex_waitv:449:449 sched_yield:24:124 restart_syscall:219:128

sendto:44:206 recvfrom:45:207 recvmsg:47:212 shutdown:48:210 getsockname:51:204
getpeername:52:205 getsockopt:55:209

rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sigaltstack:131:132

set_robust_list:273:99 rseq:334:293 set_tid_address:218:96 membarrier:324:283
sched_getaffinity:204:123 getcpu:309:168 exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95
getpid:39:172 gettid:186:178 getppid:110:173 getpgrp:111: getuid:102:174 geteuid:107:175
getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158
getrusage:98:165 times:100:153 sysinfo:99:179 uname:63:160 getrlimit:97:163 gettimeofday:96:169
time:201: clock_gettime:228:113 clock_getres:229:114 getrandom:318:278 arch_prctl:158:
"""
"""Name, number on x86_64, number on aarch64; files, memory, waiting, socket pairs, signals,
the process itself."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the table, and what the kernel calls the machine (AUDIT_ARCH_*)."""

_CLONE, _CLONE3 = (56, 220), (435, 435)
_FCNTL, _IOCTL, _PRCTL = (72, 25), (16, 29), (157, 167)
_PRLIMIT64, _SOCKETPAIR = (302, 261), (53, 199)

_CLONE_THREAD = 0x10000
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
"""Duplicates, flags and locks: not F_SETOWN, F_NOTIFY or F_SETLEASE, which have signals sent."""
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_PRCTL_COMMANDS = (15, 16, 0x53564D41)
"""Names of threads and of memory."""
_AF_UNIX = 1

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050001, 0x00050026
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000

_Step = tuple[int, int, int, int]
"""Code, operand, steps to skip if it holds, steps to skip if it doesn't."""


def filter_program(machine: str = "") -> bytes:
    """The filter, as an array of the kernel's `struct sock_filter`, for this machine, or that
    one. FailedPrecondition where its system calls aren't known here."""
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise FailedPrecondition(f"functions can't be confined on {machine}")
    column, architecture = _MACHINES[machine]
    # Another architecture's calls (32 bits on x86_64) have other numbers: nobody needs them.
    steps: list[_Step] = [
        (_LOAD, _ARCHITECTURE, 0, 0),
        (_EQUAL, architecture, 1, 0),
        (_RETURN, _KILL, 0, 0),
        (_LOAD, _NUMBER, 0, 0),
        (_AT_LEAST, _X32, 0, 1),
        (_RETURN, _KILL, 0, 0),
    ]
    for number in _allowed(column):
        steps += ((_EQUAL, number, 0, 1), (_RETURN, _ALLOW, 0, 0))
    # glibc makes threads by clone where there is no clone3, whose flags no filter can read.
    steps += ((_EQUAL, _CLONE3[column], 0, 1), (_RETURN, _ENOSYS, 0, 0))
    steps += _where(_CLONE[column], 0, [(_ANY_BIT, _CLONE_THREAD, 0, 1)])
    steps += _where(_FCNTL[column], 1, _one_of(_FCNTL_COMMANDS))
    steps += _where(_IOCTL[column], 1, _one_of(_IOCTL_COMMANDS))
    steps += _where(_PRCTL[column], 0, _one_of(_PRCTL_COMMANDS))
    steps += _where(_PRLIMIT64[column], 0, _one_of((0,)))
    steps += _where(_SOCKETPAIR[column], 0, _one_of((_AF_UNIX,)))
    steps.append((_RETURN, _EPERM, 0, 0))
    return b"".join(struct.pack("HBBI", code, yes, no, k) for code, k, yes, no in steps)


def _allowed(column: int) -> Iterator[int]:
    for entry in _ALLOWED.split():
        number = entry.split(":")[1 + column]
        if number:
            yield int(number)


def _one_of(values: Sequence[int]) -> list[_Step]:
    """Holds for one of the values: goes on behind the last, and one step further if none is."""
    last = len(values) - 1
    return [(_EQUAL, value, last - i, 0 if i < last else 1) for i, value in enumerate(values)]


def _where(number: int, argument: int, tests: list[_Step]) -> list[_Step]:
    """Allows a call where the tests hold for the lower half of one of its arguments: all of
    what the kernel reads of a command, a flag or an id."""
    allowed = [(_LOAD, _ARGUMENTS + 8 * argument, 0, 0), *tests]
    inner = [*allowed, (_RETURN, _ALLOW, 0, 0), (_RETURN, _EPERM, 0, 0)]
    return [(_EQUAL, number, 0, len(inner)), *inner]
