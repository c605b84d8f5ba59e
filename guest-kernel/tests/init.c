/*
 * PID 1 of the boot test: tries, inside the booted kernel, the features that
 * containers are made of, and says on the kernel log what it found. One line a
 * check: "init: ok NAME" or "init: FAIL NAME: reason". Then resets the machine,
 * or, with "panic" on the command line, ends, which is a kernel panic.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <dirent.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int kmsg = -1;

/* Priority 1: below every console log level in use. */
static void say(const char *format, ...)
{
	char line[512] = "<1>init: ";
	size_t used = strlen(line);
	va_list args;

	va_start(args, format);
	vsnprintf(line + used, sizeof(line) - used, format, args);
	va_end(args);
	(void)!write(kmsg, line, strlen(line));
}

static void report(const char *name, int ok)
{
	if (ok)
		say("ok %s", name);
	else
		say("FAIL %s: %s", name, strerror(errno));
}

static void report_call(const char *name, long result)
{
	report(name, result >= 0);
}

/* Reads a file of procfs, sysfs or cgroupfs; empty when it cannot be read. */
static const char *content(const char *path)
{
	static char text[16384];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = '\0';
	return text;
}

static int has_word(const char *text, const char *word)
{
	size_t length = strlen(word);

	for (const char *at = text; (at = strstr(at, word)); at += length) {
		int starts = at == text || strchr(" \t\n", at[-1]);

		if (starts && strchr(" \t\n", at[length]))
			return 1;
	}
	errno = ENOENT;
	return 0;
}

static void check_mount(const char *type, const char *where, const char *options)
{
	char name[64];

	mkdir(where, 0755);
	snprintf(name, sizeof(name), "mount %s", type);
	report_call(name, mount(type, where, type, 0, options));
}

static void check_mounts(void)
{
	check_mount("sysfs", "/sys", NULL);
	check_mount("securityfs", "/sys/kernel/security", NULL);
	check_mount("bpf", "/sys/fs/bpf", NULL);
	check_mount("cgroup2", "/sys/fs/cgroup", NULL);
	check_mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666");
	check_mount("mqueue", "/dev/mqueue", NULL);
	check_mount("hugetlbfs", "/huge", NULL);
	check_mount("tmpfs", "/tmp", "size=16m");
	mkdir("/tmp/lower", 0755);
	mkdir("/tmp/upper", 0755);
	mkdir("/tmp/work", 0755);
	check_mount("overlay", "/merged", "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work");
	report_call("trusted xattr on tmpfs", setxattr("/tmp/lower", "trusted.a", "b", 1, 0));
	report_call("user xattr on overlay", setxattr("/merged", "user.a", "b", 1, 0));
}

static void check_file_systems(void)
{
	static const char *const types[] = { "virtiofs", "fuse", "overlay", "erofs", "ext4" };
	char name[64];

	for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
		snprintf(name, sizeof(name), "file system %s", types[i]);
		report(name, has_word(content("/proc/filesystems"), types[i]));
	}
}

static void check_controllers(void)
{
	static const char *const controllers[] = { "cpuset", "cpu", "io", "memory", "hugetlb", "pids" };
	char name[64];

	for (size_t i = 0; i < sizeof(controllers) / sizeof(*controllers); i++) {
		snprintf(name, sizeof(name), "cgroup controller %s", controllers[i]);
		report(name, has_word(content("/sys/fs/cgroup/cgroup.controllers"), controllers[i]));
	}
	report_call("pressure stall information", access("/proc/pressure/memory", R_OK));
}

static void check_namespaces(void)
{
	static const struct {
		const char *name;
		int flag;
	} kinds[] = {
		{ "user", CLONE_NEWUSER }, { "mount", CLONE_NEWNS },	   { "pid", CLONE_NEWPID },
		{ "net", CLONE_NEWNET },   { "ipc", CLONE_NEWIPC },	   { "uts", CLONE_NEWUTS },
		{ "time", CLONE_NEWTIME }, { "cgroup", CLONE_NEWCGROUP },
	};
	char name[64];

	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		int status = 0;
		pid_t child = fork();

		if (child == 0)
			_exit(unshare(kinds[i].flag) ? errno : 0);
		waitpid(child, &status, 0);
		errno = WEXITSTATUS(status);
		snprintf(name, sizeof(name), "namespace %s", kinds[i].name);
		report(name, child > 0 && status == 0);
	}
}

static void check_sockets(void)
{
	static const struct {
		const char *name;
		int family, type, protocol;
	} kinds[] = {
		{ "ipv4", AF_INET, SOCK_STREAM, 0 },
		{ "ipv6", AF_INET6, SOCK_STREAM, 0 },
		{ "unix", AF_UNIX, SOCK_STREAM, 0 },
		{ "vsock", AF_VSOCK, SOCK_STREAM, 0 },
		{ "packet", AF_PACKET, SOCK_RAW, 0 },
		{ "netfilter", AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER },
		{ "socket diagnosis", AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG },
	};
	char name[64];

	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		int fd = socket(kinds[i].family, kinds[i].type | SOCK_CLOEXEC, kinds[i].protocol);

		snprintf(name, sizeof(name), "socket %s", kinds[i].name);
		report_call(name, fd);
		if (fd >= 0)
			close(fd);
	}
}

/* cgroup v2 has no device controller: runtimes attach a program like this. */
static void check_device_program(void)
{
	struct bpf_insn program[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr load = {
		.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
		.insns = (unsigned long)program,
		.insn_cnt = 2,
		.license = (unsigned long)"GPL",
	};
	int fd = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof(load));
	int group = open("/sys/fs/cgroup", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	union bpf_attr attach = {
		.target_fd = group,
		.attach_bpf_fd = fd,
		.attach_type = BPF_CGROUP_DEVICE,
	};

	report_call("bpf device program load", fd);
	report_call("bpf device program attach", syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof(attach)));
}

static void check_calls(void)
{
	unsigned int action = SECCOMP_RET_USER_NOTIF;
	char ring[120] = { 0 };

	report_call("seccomp filters", syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action));
	report_call("io_uring", syscall(SYS_io_uring_setup, 4, ring));
	report_call("memfd", memfd_create("a", MFD_CLOEXEC));
	report_call("inotify", inotify_init1(IN_CLOEXEC));
	report_call("fanotify", fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC, O_RDONLY));
	report_call("epoll", epoll_create1(EPOLL_CLOEXEC));
	report_call("pidfd", syscall(SYS_pidfd_open, getpid(), 0));
	report_call("keyring", syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3, 1));
	report_call("openat2", syscall(SYS_openat2, AT_FDCWD, "/", (unsigned long[3]){ O_PATH }, 24));
	report_call("landlock", syscall(444 /* landlock_create_ruleset */, NULL, 0, 1));
}

static void check_devices(void)
{
	static const char *const paths[] = { "/dev/console", "/dev/ptmx",  "/dev/null",	"/dev/fuse",
					     "/dev/net/tun", "/dev/loop-control", "/dev/hwrng" };

	for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++)
		report_call(paths[i], access(paths[i], R_OK | W_OK));
	report_call("write to /dev/console", dprintf(open("/dev/console", O_RDWR | O_NOCTTY), "x\n"));
}

/* A pod starts with lo and what the monitor gives it, nothing else. */
static void check_interfaces(void)
{
	DIR *dir = opendir("/sys/class/net");
	struct dirent *entry;
	int others = 0;

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.' && strcmp(entry->d_name, "lo")) {
			say("interface %s", entry->d_name);
			others = 1;
		}
	errno = EEXIST;
	report("no interface but lo", dir && !others);
}

static void check_hardening(void)
{
	errno = EEXIST;
	report("no module loading", access("/proc/modules", F_OK) != 0);
	errno = EEXIST;
	report("no /dev/mem", access("/dev/mem", F_OK) != 0);
	errno = EPERM;
	report("unprivileged bpf off", atoi(content("/proc/sys/kernel/unprivileged_bpf_disabled")) > 0);
}

static void check_cpus(void)
{
	const char *want = getenv("cpus");
	long online = sysconf(_SC_NPROCESSORS_ONLN);

	say("%ld cpus online", online);
	errno = ENODEV;
	report("cpus online", want && online == atol(want));
}

int main(void)
{
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	say("reached");
	mkdir("/proc", 0555);
	mount("proc", "/proc", "proc", 0, NULL);
	if (getenv("ending") && !strcmp(getenv("ending"), "panic"))
		return 7;
	if (getenv("checks")) {
		check_mounts();
		check_file_systems();
		check_controllers();
		check_namespaces();
		check_sockets();
		check_device_program();
		check_calls();
		check_devices();
		check_interfaces();
		check_hardening();
		check_cpus();
		say("checks done");
	}
	reboot(RB_AUTOBOOT);
	return 1;
}
