/*
 * The first program of the measured machine, and the only one in its initrd.
 *
 * It loads the kernel's modules, opens the root image through dm-verity with the root hash that
 * stands on the measured command line, closes the door to further modules, and hands over to
 * Python. There is no shell, nothing is read from the network, and whatever fails stops the
 * machine: one that comes up is the one that was measured.
 *
 * Command line: blindai.verity=<data blocks>:<root hash>:<salt>. Blocks have 4096 bytes; the
 * hash tree follows the data on the same disk, without a superblock.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stddef.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define BLOCK 4096
#define SECTOR 512
#define NAME "root"
#define DEVICE "/dev/vda"
#define NEW_ROOT "/root"

static void stop(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fprintf(stderr, "blindai-init: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, "; the machine stops\n");
	va_end(arguments);
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void mount_or_stop(const char *source, const char *target, const char *kind,
			  unsigned long flags, const char *options)
{
	if (mount(source, target, kind, flags, options) != 0)
		stop("cannot mount %s on %s: %s", kind ? kind : source, target, strerror(errno));
}

static void load_modules(void)
{
	char name[256];
	FILE *order = fopen("/modules/order", "r");
	if (order == NULL)
		stop("/modules/order: %s", strerror(errno));
	while (fgets(name, sizeof name, order) != NULL) {
		char path[300];
		name[strcspn(name, "\n")] = '\0';
		snprintf(path, sizeof path, "/modules/%s", name);
		int file = open(path, O_RDONLY | O_CLOEXEC);
		/* A driver of hardware that is not there says ENODEV: nothing is wrong. */
		if (file < 0)
			stop("%s: %s", path, strerror(errno));
		if (syscall(SYS_finit_module, file, "", 0) != 0 && errno != ENODEV && errno != EEXIST)
			fprintf(stderr, "blindai-init: %s: %s\n", name, strerror(errno));
		close(file);
	}
	fclose(order);
}

static void read_file(const char *path, char *text, size_t size)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? -1 : read(file, text, size - 1);
	if (length < 0 || (size_t)length == size - 1)
		stop("%s: %s", path, length < 0 ? strerror(errno) : "too long");
	text[length] = '\0';
	close(file);
}

static void write_file(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, text, strlen(text)) != (ssize_t)strlen(text))
		stop("cannot write %s: %s", path, strerror(errno));
	close(file);
}

struct verity {
	uint64_t blocks;
	char root[65];
	char salt[65];
};

static struct verity parse_command_line(void)
{
	static char line[4096];
	struct verity found = {0};
	read_file("/proc/cmdline", line, sizeof line);
	for (char *word = strtok(line, " \n"); word != NULL; word = strtok(NULL, " \n")) {
		unsigned long long blocks;
		if (strncmp(word, "blindai.verity=", 15) != 0)
			continue;
		if (found.blocks != 0)
			stop("blindai.verity stands on the command line twice");
		if (sscanf(word + 15, "%llu:%64[0-9a-f]:%64[0-9a-f]", &blocks, found.root,
			   found.salt) != 3 || blocks == 0 || blocks > (1ULL << 32) ||
		    strlen(found.root) != 64 || strlen(found.salt) != 64)
			stop("blindai.verity: expected blocks:root hash:salt");
		found.blocks = blocks;
	}
	if (found.blocks == 0)
		stop("blindai.verity is not on the command line");
	return found;
}

static void wait_for(const char *path)
{
	for (int tenths = 0; tenths < 300; tenths++) {
		if (access(path, F_OK) == 0)
			return;
		usleep(100000);
	}
	stop("%s does not appear", path);
}

/* The buffer of a device-mapper call: its header, one target, and the target's parameters. */
struct call {
	struct dm_ioctl header;
	struct dm_target_spec target;
	char parameters[1024];
};

static void map_call(int control, unsigned long command, const char *what, struct call *call)
{
	call->header.version[0] = DM_VERSION_MAJOR;
	call->header.data_size = sizeof *call;
	call->header.data_start = offsetof(struct call, target);
	strcpy(call->header.name, NAME);
	if (ioctl(control, command, call) != 0)
		stop("dm-verity: %s: %s", what, strerror(errno));
}

static dev_t open_verity(const struct verity *verity)
{
	struct call call = {0};
	unsigned minor = 0;
	char *at;
	/* There is no udev: the number of the control device stands in /proc/misc. */
	char misc[4096];
	read_file("/proc/misc", misc, sizeof misc);
	if ((at = strstr(misc, " device-mapper")) == NULL)
		stop("the kernel has no device-mapper");
	while (at > misc && at[-1] != '\n')
		at--;
	minor = (unsigned)strtoul(at, NULL, 10);
	mkdir("/dev/mapper", 0700);
	if (mknod("/dev/mapper/control", S_IFCHR | 0600, makedev(10, minor)) != 0 && errno != EEXIST)
		stop("/dev/mapper/control: %s", strerror(errno));
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		stop("/dev/mapper/control: %s", strerror(errno));

	call.header.flags = DM_READONLY_FLAG;
	map_call(control, DM_DEV_CREATE, "create", &call);

	memset(&call, 0, sizeof call);
	call.header.flags = DM_READONLY_FLAG;
	call.header.target_count = 1;
	call.target.length = verity->blocks * (BLOCK / SECTOR);
	strcpy(call.target.target_type, "verity");
	snprintf(call.parameters, sizeof call.parameters,
		 "1 " DEVICE " " DEVICE " %d %d %llu %llu sha256 %s %s 1 panic_on_corruption", BLOCK,
		 BLOCK, (unsigned long long)verity->blocks, (unsigned long long)verity->blocks,
		 verity->root, verity->salt);
	map_call(control, DM_TABLE_LOAD, "load", &call);

	memset(&call, 0, sizeof call);
	map_call(control, DM_DEV_SUSPEND, "resume", &call); /* no suspend flag: it resumes */
	close(control);
	fprintf(stderr, "blindai-init: root is verified against %.16s…\n", verity->root);
	return (dev_t)call.header.dev;
}

static void mount_root(dev_t device)
{
	if (mknod("/dev/root", S_IFBLK | 0400, device) != 0)
		stop("/dev/root: %s", strerror(errno));
	mount_or_stop("/dev/root", NEW_ROOT, "squashfs", MS_RDONLY | MS_NODEV | MS_NOSUID, NULL);
	mount_or_stop("tmpfs", NEW_ROOT "/tmp", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC,
		      "mode=1777,size=25%");
	mount_or_stop("tmpfs", NEW_ROOT "/run", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC,
		      "mode=0755,size=16m");
	mount_or_stop("/proc", NEW_ROOT "/proc", NULL, MS_MOVE, NULL);
	mount_or_stop("/sys", NEW_ROOT "/sys", NULL, MS_MOVE, NULL);
	mount_or_stop("/dev", NEW_ROOT "/dev", NULL, MS_MOVE, NULL);
}

int main(void)
{
	static char *const command[] = {"/usr/bin/python3.11", "-I", "-S",
					"/usr/lib/blindai/machine.py", NULL};
	static char *const environment[] = {"PATH=/usr/bin", "HOME=/tmp", "LANG=C.UTF-8", NULL};

	umask(0077);
	mount_or_stop("proc", "/proc", "proc", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
	mount_or_stop("sysfs", "/sys", "sysfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
	mount_or_stop("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755");
	/* The kernel opened no console: /dev was empty until now. */
	int console = open("/dev/console", O_RDWR);
	if (console >= 0)
		for (int file = 0; file < 3; file++)
			dup2(console, file);

	struct verity verity = parse_command_line();
	load_modules();
	write_file("/proc/sys/kernel/modules_disabled", "1");
	wait_for(DEVICE);
	mount_root(open_verity(&verity));

	mkdir(NEW_ROOT "/dev/shm", 0700);
	mount_or_stop("tmpfs", NEW_ROOT "/dev/shm", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC,
		      "mode=0700,size=75%");
	/* Without these the server has no TPM log, or no SEV-SNP or TDX: it says so itself. */
	mount("securityfs", NEW_ROOT "/sys/kernel/security", "securityfs",
	      MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);
	mount("configfs", NEW_ROOT "/sys/kernel/config", "configfs",
	      MS_NODEV | MS_NOSUID | MS_NOEXEC, NULL);

	if (chdir(NEW_ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 ||
	    chdir("/") != 0)
		stop("cannot change to the root image: %s", strerror(errno));
	execve(command[0], command, environment);
	stop("cannot run %s: %s", command[0], strerror(errno));
}
