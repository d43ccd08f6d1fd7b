"""A machine of the image, in QEMU: firmware, a TPM in software, one disk, one network card."""

import contextlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
PROGRAMS = ("qemu-system-x86_64", "swtpm", "swtpm_setup", "mksquashfs", "veritysetup", "gcc")
# Processors are emulated: 35 seconds on two quiet cores.
PATIENCE = 150


def missing():
    """Return what the tests need and this computer does not have."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return ", ".join(lacking + [str(f) for f in (FIRMWARE, VARIABLES) if not f.exists()])


class VirtualMachine:
    """One boot of an image.

    Args:
        folder: For its files.
        image: What is booted.
        tpm: The state of its TPM.
    """

    def __init__(self, folder, image, tpm):
        self._folder = folder
        self._image = image
        self._tpm = tpm
        self._processes = []
        self.attested, self.public = _free_port(), _free_port()

    @property
    def address(self):
        return f"127.0.0.1:{self.attested}"

    @property
    def console(self):
        """What the machine wrote to its console."""
        return (self._folder / "console").read_text("utf-8", "replace")

    def __enter__(self):
        self._folder.mkdir()
        control = self._folder / "tpm.sock"
        self._start(
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._tpm}"),
            *("--ctrl", f"type=unixio,path={control}"),
        )
        for _ in range(200):
            if control.exists():
                break
            time.sleep(0.02)
        variables = self._folder / "variables.fd"
        shutil.copyfile(VARIABLES, variables)
        flash = "if=pflash,format=raw"
        forward = ",".join(
            f"hostfwd=tcp:127.0.0.1:{here}-:{there}"
            for here, there in ((self.attested, 50051), (self.public, 50052))
        )
        self._start(
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "q35"),
            *("-smp", "1", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-serial", f"file:{self._folder / 'console'}"),
            *("-drive", f"{flash},unit=0,readonly=on,file={FIRMWARE}"),
            *("-drive", f"{flash},unit=1,file={variables}"),
            *("-kernel", self._image / "vmlinuz", "-initrd", self._image / "initrd"),
            *("-append", (self._image / "cmdline").read_text()),
            *("-drive", f"if=none,id=root,format=raw,readonly=on,file={self._image / 'root.img'}"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-netdev", f"user,id=net,restrict=on,{forward}"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *("-chardev", f"socket,id=tpm,path={control}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
            *("-device", "virtio-rng-pci"),
        )
        return self

    def __exit__(self, *_):
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

    def wait_ready(self):
        """Return whether the server came up; `False` once the machine went off."""
        url = f"http://127.0.0.1:{self.public}/v2/health/ready"
        for _ in range(PATIENCE):
            if self._processes[-1].poll() is not None:
                return False
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(url, timeout=2) as answer,
            ):
                if answer.status == 200:
                    return True
            time.sleep(1)
        raise TimeoutError(self.console)

    def _start(self, *command):
        with (self._folder / "errors").open("ab") as errors:
            self._processes.append(
                subprocess.Popen(
                    [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=errors,
                    stderr=errors,
                )
            )  # fmt: skip


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
