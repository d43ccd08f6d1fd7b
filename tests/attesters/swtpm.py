"""A real TPM 2.0 in software (swtpm), with an endorsement key certified by a CA of its own."""

import contextlib
import shutil
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from blindai.attestation.certs import fingerprint
from blindai.attestation.trust import Anchor

try:
    import tpm2_pytss as tss
except (ImportError, OSError):  # the tests that need it are skipped
    tss = None

_PROGRAMS = ("swtpm", "swtpm_setup", "swtpm_localca", "swtpm_ioctl")
_PEM_KEY = b"-----BEGIN "
STARTUP_CLEAR = bytes.fromhex("80010000000c000001440000")


def missing():
    """Return what is missing to start a TPM in software; nothing if it can be started."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    if tss is None:
        lacking.append("tpm2-pytss")
    return ", ".join(lacking)


class TpmVendor:
    """Manufactures TPMs that one CA certifies, and certifies their attestation keys."""

    def __init__(self, folder):
        self._folder = folder
        self._ca = folder / "ca"
        self._ca.mkdir()
        (folder / "localca.conf").write_text(
            f"statedir = {self._ca}\nsigningkey = {self._ca}/signkey.pem\n"
            f"issuercert = {self._ca}/issuercert.pem\ncertserial = {self._ca}/certserial\n"
        )
        (folder / "localca.options").write_text(
            "--platform-manufacturer Fake\n--platform-version 1\n--platform-model Fake\n"
        )
        (folder / "setup.conf").write_text(
            f"create_certs_tool={shutil.which('swtpm_localca')}\n"
            f"create_certs_tool_config={folder}/localca.conf\n"
            f"create_certs_tool_options={folder}/localca.options\nactive_pcr_banks=sha256\n"
        )

    def make(self, name):
        """Return the state folder of a new TPM with a certified endorsement key."""
        state = self._folder / name
        state.mkdir()
        command = ["swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert"]
        command += ["--lock-nvram", "--config", self._folder / "setup.conf", "--vmid", name]
        subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=60)
        return state

    @property
    def anchors(self):
        """The vendor's root."""
        root = self._certificates()[-1]
        return (Anchor("swtpm", fingerprint(root), "tests"),)

    def certify(self, public_key):
        """Return PEM of a certificate for an attestation key, and its chain."""
        issuer, root = self._certificates()
        content = (self._ca / "signkey.pem").read_bytes()
        key = load_pem_private_key(content[content.index(_PEM_KEY) :], None)
        now = datetime.now(UTC)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
            False,
        )  # fmt: skip
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AK")]))
            .issuer_name(issuer.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .sign(key, hashes.SHA256())
        )
        return b"".join(c.public_bytes(Encoding.PEM) for c in (certificate, issuer, root))

    def _certificates(self):
        names = ("issuercert.pem", "swtpm-localca-rootca-cert.pem")
        return [x509.load_pem_x509_certificate((self._ca / name).read_bytes()) for name in names]


class SoftwareTpm:
    """One running TPM."""

    def __init__(self, state):
        self._state = state
        self.port = _free_ports()
        self._process = None

    @property
    def tcti(self):
        return f"swtpm:host=127.0.0.1,port={self.port}"

    def start(self):
        self._process = subprocess.Popen(
            [
                "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state}",
                "--server", f"type=tcp,port={self.port},bindaddr=127.0.0.1",
                "--ctrl", f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1",
                "--flags", "not-need-init,startup-clear",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(200):
            with contextlib.suppress(OSError), _connect(self.port + 1):
                return
            time.sleep(0.02)
        raise TimeoutError(self.tcti)

    def stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def power_cycle(self):
        """Reset the TPM as a power cut does, while whoever is connected stays so."""
        command = ["swtpm_ioctl", "--tcp", f"127.0.0.1:{self.port + 1}", "-i"]
        subprocess.run(command, check=True, capture_output=True, timeout=10)

    @contextlib.contextmanager
    def esapi(self):
        """Open the TPM for what a test does to it."""
        tcti = tss.TCTILdr.parse(self.tcti)
        try:
            with tss.ESAPI(tcti) as esapi:
                yield esapi
        finally:
            tcti.close()

    def extend(self, pcr, content=b"something else"):
        """Extend one PCR."""
        with self.esapi() as esapi:
            esapi.pcr_event(tss.ESYS_TR(pcr), content)


def _connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=1)


def _free_ports():
    """Return a free port whose successor is free, too: libtss2 takes that for control."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
    raise OSError
