"""Build the measured machine: a kernel, an initrd and a verified root image that serve BlindAI.

Always true here: the same sources, locks and compiler give the same bytes, whenever and wherever
they are built. Everything comes from packages that deploy/vm/packages.lock and
requirements/vm.txt name by SHA-256, and from this tree.

Run it as root, through `make vm`: files of the image belong to root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import cpio
import debian

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
EPOCH: Final = "315532800"  # 1980, the earliest time that a zip file can hold
BLOCK: Final = 4096
# A salt keeps one table of hashes from serving for many images; that is no concern here, and a
# fixed one keeps the image the same.
SALT: Final = hashlib.sha256(b"blindai root image").hexdigest()
COMMAND_LINE: Final = (
    "console=ttyS0 loglevel=4 panic=-1 ro module.sig_enforce=1 lockdown=integrity "
    "init_on_alloc=1 slab_nomerge vsyscall=none debugfs=off blindai.verity={verity}"
)
# What the machine may need, each after what it depends on. Drivers of hardware that is not
# there refuse to load, which is well.
MODULES: Final = (
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "dm-verity",
    "squashfs",
    "configfs",
    "tsm",
    "sev-guest",
    "tdx-guest",
)
# Of Debian's Python: what a server never needs, and what would be a shell of a kind.
UNWANTED: Final = (
    *("bin", "sbin", "boot", "etc", "var", "usr/sbin", "usr/share", "usr/games", "lib/modules"),
    *("usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/engines-3"),
    *("lib/systemd", "usr/lib/systemd", "usr/lib/locale", "usr/lib/mime", "usr/lib/valgrind"),
    *(f"usr/lib/python3.11/{name}" for name in ("idlelib", "lib2to3", "pydoc_data", "tkinter")),
    *(f"usr/lib/python3.11/{name}" for name in ("turtledemo", "ensurepip", "test", "venv")),
)
EMPTY: Final = ("dev", "proc", "run", "sys", "tmp", "etc", "models", "root")
PROGRAMS: Final = ("apt-get", "dpkg-deb", "gcc", "mksquashfs", "pkg-config", "veritysetup")
TSS_LIBRARIES: Final = ("esys", "mu", "rc", "sys", "tctildr", "tcti-device")


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build/vm")
    parser.add_argument("--models", type=Path, help="folder of .onnx files to put in")
    parser.add_argument("--source", type=Path, default=ROOT, help="the tree to build from")
    parser.add_argument("--cache", type=Path, default=ROOT / "build/vm-cache")
    parser.add_argument("--lock", action="store_true", help="lock Debian's packages instead")
    options = parser.parse_args()
    os.umask(0o022)
    if options.lock:
        debian.write_lock(HERE / "packages.txt", HERE / "packages.lock", options.cache / "deb")
        return
    if os.geteuid() != 0:
        sys.exit("make vm needs root: files of the image belong to root")
    missing = sorted(program for program in PROGRAMS if shutil.which(program) is None)
    if missing:
        sys.exit(f"make vm needs {', '.join(missing)}: see deploy/vm/README.md")
    build(options.output, options.source.resolve(), options.cache, options.models)


def build(output: Path, source: Path, cache: Path, models: Path | None) -> None:
    """Write vmlinuz, initrd, root.img, cmdline and manifest.json into a new folder."""
    work = output.with_name(output.name + ".partial")
    for old in (work, output):
        shutil.rmtree(old, ignore_errors=True)
    tree, image = work / "tree", work / "image"
    tree.mkdir(parents=True)
    image.mkdir()

    say("Debian packages")
    packages = debian.read_lock(source / "deploy/vm/packages.lock")
    for package in packages:
        debian.unpack(debian.fetch(package, cache / "deb"), tree)
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    release = kernel.name.removeprefix("vmlinuz-")
    shutil.copyfile(kernel, image / "vmlinuz")
    (image / "initrd").write_bytes(make_initrd(tree, release, source, work))

    say("Python packages")
    prune(tree)
    python_packages = tree / "usr/lib/python3/dist-packages"
    install(python_packages, source, work, cache)
    finish(tree, source, models)

    say("root image")
    root_hash, blocks = make_root(tree, image / "root.img")
    line = COMMAND_LINE.format(verity=f"{blocks}:{root_hash}:{SALT}")
    (image / "cmdline").write_text(line)
    write_manifest(image, release, packages, source / "deploy/vm/golden.json")
    shutil.rmtree(tree)
    image.rename(output)
    shutil.rmtree(work)
    say(f"wrote {output}")


def make_initrd(tree: Path, release: str, source: Path, work: Path) -> bytes:
    """Return the initrd: the init, the modules in the order to load them, and mount points."""
    init = work / "init"
    run(
        *("gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Wl,--build-id=none", "-o", init),
        source / "deploy/vm/init.c",
        env={"SOURCE_DATE_EPOCH": EPOCH},
    )
    names, contents = ordered_modules(tree / "lib/modules" / release)
    order = "".join(f"{name}\n" for name in names).encode()
    return cpio.archive(
        (
            *(cpio.directory(name) for name in ("dev", "modules", "proc", "root", "sys")),
            cpio.file("init", init.read_bytes(), 0o500),
            *(cpio.file(f"modules/{n}", c) for n, c in zip(names, contents, strict=True)),
            cpio.file("modules/order", order),
            # Before /dev is mounted the kernel looks for a console here.
            cpio.Entry("dev/console", 0o020600, device=(5, 1)),
        )
    )


def ordered_modules(folder: Path) -> tuple[list[str], list[bytes]]:
    """Return the modules that are wanted, unpacked, each after what it depends on.

    Unpacked, because the initrd's init does not unpack; a module's signature covers the
    unpacked form.
    """
    files = {canonical(path.name): path for path in sorted(folder.rglob("*.ko.xz"))}
    built_in = {canonical(Path(n).name) for n in (folder / "modules.builtin").read_text().split()}
    names: list[str] = []
    contents: list[bytes] = []

    def add(name: str) -> None:
        if name in built_in or f"{name}.ko" in names:
            return
        if name not in files:
            sys.exit(f"the kernel has no module {name}")
        content = lzma.decompress(files[name].read_bytes())
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends[1].decode().split(",") if depends and depends[1] else ():
            add(canonical(needed))
        names.append(f"{name}.ko")
        contents.append(content)

    for name in MODULES:
        add(canonical(name))
    return names, contents


def canonical(name: str) -> str:
    """Return a module's name as the kernel compares it."""
    return name.removesuffix(".xz").removesuffix(".ko").replace("-", "_")


def prune(tree: Path) -> None:
    """Remove what a server never needs, and make sure that no shell is left."""
    for name in UNWANTED:
        path = tree / name
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
    for program in sorted((tree / "usr/bin").iterdir()):
        if program.name != "python3.11":
            program.unlink()
    for pattern in ("__pycache__", "*.egg-info", "config-3.11-*"):
        for path in sorted(tree.rglob(pattern)):
            shutil.rmtree(path)
    for name in EMPTY:
        (tree / name).mkdir(exist_ok=True)


def install(target: Path, source: Path, work: Path, cache: Path) -> None:
    """Install BlindAI and what it needs, by hash."""
    target.mkdir(parents=True, exist_ok=True)
    wheels = work / "wheels"
    uv = find_uv()
    compiled = compile_tss(source, work, cache, uv)
    environment = {"SOURCE_DATE_EPOCH": EPOCH, "PYTHONHASHSEED": "0"}
    run(
        *(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", wheels),
        cwd=source,
        env=environment,
    )
    locked = work / "requirements.txt"
    locked.write_text(without(source / "requirements/vm.txt", "tpm2-pytss"))
    pip = (*uv, "pip", "install", "--quiet", "--python-version", "3.11", "--target", target)
    run(*pip, "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", locked)
    run(*pip, "--no-deps", compiled, next(wheels.glob("blindai-*.whl")))
    # What an installer says of itself differs from run to run.
    for pattern in ("*.dist-info/RECORD", "*.dist-info/INSTALLER", "*.dist-info/direct_url.json"):
        for path in sorted(target.glob(pattern)):
            path.unlink()
    for pattern in ("*.dist-info/uv_cache.json", "*.dist-info/REQUESTED", ".lock"):
        for path in sorted(target.glob(pattern)):
            path.unlink()
    for name in ("bin", "include", "share"):
        shutil.rmtree(target / name, ignore_errors=True)
    # Half of the files of these packages are test data.
    for name in ("onnx/backend/test", "onnx/test", "onnxruntime/datasets", "onnxruntime/tools"):
        shutil.rmtree(target / name, ignore_errors=True)


def compile_tss(source: Path, work: Path, cache: Path, uv: tuple[str, ...]) -> Path:
    """Compile tpm2-pytss, without the libraries that would bring an HTTP client along."""
    tools = cache / "tools"
    lock = source / "requirements/vm-build.txt"
    stamp = tools / hashlib.sha256(lock.read_bytes()).hexdigest()
    if not stamp.exists():
        shutil.rmtree(tools, ignore_errors=True)
        run(*uv, "venv", "--quiet", "--python", sys.executable, tools)
        python = tools / "bin/python"
        run(*uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", lock)
        stamp.touch()
    system = Path(output_of("pkg-config", "--variable=pcfiledir", "tss2-esys").strip())
    configuration = work / "pkgconfig"
    configuration.mkdir()
    for name in (*(f"tss2-{library}" for library in TSS_LIBRARIES), "libcrypto"):
        if (system / f"{name}.pc").exists():
            (configuration / f"{name}.pc").symlink_to(system / f"{name}.pc")
    locked = work / "tss.txt"
    locked.write_text(only(source / "requirements/vm.txt", "tpm2-pytss"))
    run(
        *(tools / "bin/python", "-m", "pip", "wheel", "--quiet", "--no-cache-dir", "--no-deps"),
        *("--no-build-isolation", "--no-binary", "tpm2-pytss", "--require-hashes"),
        *("-r", locked, "-w", work / "wheels"),
        env={
            "PATH": f"{tools.resolve()}/bin:{os.environ['PATH']}",
            "PKG_CONFIG_LIBDIR": str(configuration),
            "CFLAGS": f"-g0 -O2 -ffile-prefix-map={work.resolve()}=.",
            "SOURCE_DATE_EPOCH": EPOCH,
            "PYTHONHASHSEED": "0",
        },
    )
    return next((work / "wheels").glob("tpm2_pytss-*.whl"))


def finish(tree: Path, source: Path, models: Path | None) -> None:
    """Add the machine's own files and the models, and compile what is imported."""
    own = tree / "usr/lib/blindai"
    own.mkdir()
    shutil.copyfile(source / "deploy/vm/machine.py", own / "machine.py")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/tmp:/nonexistent\n")
    (tree / "etc/group").write_text("root:x:0:\ntss:x:101:\n")
    (tree / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for model in sorted(models.glob("*.onnx")) if models else ():
        shutil.copyfile(model, tree / "models" / model.name)
    for path in sorted((tree / "usr/lib").rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)  # modules are no programs
    # One process, in one order: what Python writes depends on what it has seen before.
    run(
        *(sys.executable, "-I", "-m", "compileall", "-q", "-j", "1", "-o", "0"),
        *("--invalidation-mode", "unchecked-hash", "-s", tree, "-p", "/"),
        *(tree / "usr/lib/python3.11", tree / "usr/lib/python3/dist-packages", own),
        env={"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": EPOCH},
        check=False,  # some packages ship files of other Python versions
    )


def make_root(tree: Path, image: Path) -> tuple[str, int]:
    """Write the root image and its hash tree; return the root hash, and its blocks of data."""
    run(
        *("mksquashfs", tree, image, "-quiet", "-no-progress", "-noappend", "-all-root"),
        *("-no-xattrs", "-comp", "zstd", "-Xcompression-level", "12", "-b", "131072"),
        *("-processors", "1", "-reproducible"),
        env={"SOURCE_DATE_EPOCH": EPOCH},
    )
    size = image.stat().st_size
    with image.open("ab") as file:
        file.write(bytes(-size % BLOCK))
    size = image.stat().st_size
    said = output_of(
        *("veritysetup", "format", "--no-superblock", "--hash", "sha256", "--salt", SALT),
        *("--data-block-size", str(BLOCK), "--hash-block-size", str(BLOCK)),
        *("--data-blocks", str(size // BLOCK), "--hash-offset", str(size), image, image),
    )
    found = re.search(r"^Root hash:\s*([0-9a-f]{64})$", said, re.MULTILINE)
    if found is None:
        sys.exit(f"veritysetup gave no root hash: {said}")
    return found[1], size // BLOCK


def write_manifest(image: Path, release: str, packages: list[debian.Package], golden: Path) -> None:
    """Write what the image is made of, and the SHA-256 of each of its files."""
    names = ("cmdline", "initrd", "root.img", "vmlinuz")
    manifest = {
        "format": "blindai-machine",
        "version": 1,
        "kernel_release": release,
        "files": {
            name: {
                "sha256": hashlib.sha256((image / name).read_bytes()).hexdigest(),
                "size": (image / name).stat().st_size,
            }
            for name in names
        },
        "golden": json.loads(golden.read_text()),
        "compiler": output_of("gcc", "--version").splitlines()[0],
        "packages": {package.name: package.version for package in packages},
    }
    (image / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def only(lock: Path, name: str) -> str:
    """Return what a lock says of one package."""
    return "".join(block for block in blocks_of(lock) if block.startswith(f"{name}=="))


def without(lock: Path, name: str) -> str:
    """Return a lock without one package."""
    return "".join(block for block in blocks_of(lock) if not block.startswith(f"{name}=="))


def blocks_of(lock: Path) -> list[str]:
    """Return a lock's packages, each with the lines of its hashes."""
    return re.findall(r"^[^\s#].*\n(?:[ \t]+.*\n)*", lock.read_text(), re.MULTILINE)


def find_uv() -> tuple[str, ...]:
    """Return the command that installs packages."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        sys.exit("make vm needs uv: .venv/bin/pip install uv")
    return (found,)


def run(
    *command: object,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    check: bool = True,
) -> None:
    """Run a program; stop with its output where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        cwd=cwd,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if check and done.returncode != 0:
        sys.exit(f"{command[0]} failed with {done.returncode}:\n{done.stdout[-4000:]}")


def output_of(*command: object) -> str:
    """Return what a program prints."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def say(text: str) -> None:
    """Tell what happens."""
    print(f"vm: {text}", flush=True)


if __name__ == "__main__":
    main()
