"""A policy is strict where it is read, and survives being written."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blindai.attestation.model import Platform
from blindai.attestation.policy import MAX_POLICY_BYTES, Acceptance, Pattern, Policy
from blindai.attestation.vocabulary import VOCABULARY
from blindai.errors import ConfigurationError, PolicyError
from tests.attestation.examples import policies, text

DIGEST = "ab" * 48
SNP = f"""
version = 1
[[accept]]
platform = "sev-snp"
measurement = "{DIGEST}"
"""


def snp(lines: str) -> str:
    """Return a good policy with `lines` added to its block."""
    return SNP + lines


def test_smallest_policy():
    """The shorthand `measurement` means the platform's usual code identity."""
    policy = Policy.from_toml(SNP)
    assert policy.accept == (
        Acceptance(Platform.SEV_SNP, {"measurement": (Pattern(bytes.fromhex(DIGEST)),)}),
    )
    assert policy.models == {}


def test_everything_a_policy_can_say():
    """Every rule of the format is read into its place."""
    policy = Policy.from_toml(f"""
        version = 1
        [[accept]]
        platform = "sev-snp"
        measurement = ["{DIGEST}", "{"cd" * 48}"]
        chips = ["0102"]
        tolerate = ["smt", "AMD-SB-3015"]
        max_age = 60
        devices = ["nvidia-gpu"]
        [accept.measurements]
        policy = "0000000000030000/00000000000f0000"
        product = "text:Milan"
        [accept.minimum]
        microcode = 72
        [models]
        "covid net/v1" = "sha256:{"ef" * 32}"
    """)
    (block,) = policy.accept
    assert [pattern.value[:1].hex() for pattern in block.measurements["measurement"]] == [
        "ab",
        "cd",
    ]
    assert block.measurements["policy"][0].mask == bytes.fromhex("00000000000f0000")
    assert block.measurements["product"] == (Pattern(b"Milan"),)
    assert block.minimum == {"microcode": 72}
    assert (block.chips, block.max_age) == ((b"\x01\x02",), 60)
    assert block.tolerate == {"smt", "AMD-SB-3015"}
    assert block.devices == (Platform.NVIDIA_GPU,)
    assert policy.models == {"covid net/v1": frozenset({b"\xef" * 32})}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("", "version"),
        ("version = 1", "accepts nothing"),
        ("version = 1\naccept = []", "accepts nothing"),
        (SNP.replace("version = 1", "version = 2"), "version = 1"),
        (SNP.replace("version = 1", "version = true"), "found True"),
        (SNP.replace("version = 1", "version = 1.0"), "found 1.0"),
        (SNP.replace("version = 1", 'version = "1"'), "found '1'"),
        ("allow_debug = true\n" + SNP, "unknown key 'allow_debug'"),
        ("models = 1\n" + SNP, "models: expected a table"),
        ('version = 1\naccept = ["x"]', "accept"),
        ("version = 1\n[accept]", "blocks"),
        (SNP.replace("sev-snp", "sev"), "expected one of"),
        (SNP.replace('platform = "sev-snp"\n', ""), "platform"),
        (SNP.replace(f'measurement = "{DIGEST}"', ""), "pins no code identity"),
        (SNP.replace("measurement = ", "measuremnt = "), "unknown key 'measuremnt'"),
        (SNP.replace(DIGEST, ""), "empty"),
        (SNP.replace(DIGEST, "text:"), "empty"),
        (SNP.replace(f'"{DIGEST}"', "[]"), "empty list"),
        (SNP.replace(f'"{DIGEST}"', "7"), "hexadecimal"),
        (SNP.replace(DIGEST, "abc"), "pairs"),
        (SNP.replace(DIGEST, "ab cd"), "pairs"),
        (SNP.replace(DIGEST, f"0x{DIGEST}"), "pairs"),
        (SNP.replace(DIGEST, f"{DIGEST}/ff"), "mask of 1 bytes"),
        (SNP.replace(DIGEST, f"{DIGEST}/"), "mask of 0 bytes"),
        (SNP.replace(DIGEST, f"{DIGEST}/{'00' * 48}"), "mask of zeros"),
        (SNP.replace(DIGEST, f"{DIGEST}/{'ff' * 47}00"), "pins no code identity"),
        (SNP.replace(DIGEST, "00" * 48), "pins no code identity"),
        (SNP.replace(DIGEST, "sha256:abcd"), "64 hexadecimal digits"),
        (SNP.replace(DIGEST, f"sha256:{'ab' * 32}/{'ff' * 32}"), "pairs"),
        (snp(f'[accept.measurements]\nmeasurement = "{DIGEST}"'), "twice"),
        (snp(f'[accept.measurements]\nmrtd = "{DIGEST}"'), "unknown measurement 'mrtd'"),
        (snp("measurements = 1"), "measurements: expected a table"),
        (snp("[accept.minimum]\nmicrocod = 1"), "unknown version 'microcod'"),
        (snp("[accept.minimum]\nmicrocode = -1"), "whole number"),
        (snp("[accept.minimum]\nmicrocode = true"), "whole number"),
        (snp("[accept.minimum]\nmicrocode = 1.5"), "whole number"),
        (snp(f"[accept.minimum]\nmicrocode = {2**64}"), "whole number"),
        (snp('tolerate = ["Debug"]'), "unknown weakness 'Debug'"),
        (snp('tolerate = ["AMD-SB-3015 "]'), "unknown weakness"),
        (snp('tolerate = "debug"'), "list of strings"),
        (snp("tolerate = [1]"), "list of strings"),
        (snp("chips = []"), "every chip"),
        (snp('chips = [""]'), "empty chip id"),
        (snp('chips = "ab"'), "expected a list"),
        (snp("max_age = -1"), "whole number"),
        (snp('devices = ["gpu"]'), "expected one of"),
        (snp('devices = ["tdx"]'), "unknown device"),
        (snp(f'[models]\nx = "sha256:{"ab" * 31}"'), "64 hexadecimal digits"),
        (snp("[models]\nx = []"), "at least one"),
        (snp(f'[models]\nx = "{"ab" * 32}/{"0f" * 32}"'), "pairs"),
        (snp(f'[models]\nx = "text:{"a" * 32}"'), "pairs"),
        ("version = 1\n" * 2, "not TOML"),
        ("a = " + "[" * 20_000, "nested too deeply"),
        ("version = " + "1" * 5_000, "too large"),
        ("version = 0x" + "f" * 5_000, "too large"),
    ],
)
def test_refusals(document, why):
    """What a careful person would not have meant is refused at load, with the reason."""
    with pytest.raises(PolicyError, match=why):
        Policy.from_toml(document)


def test_zero_digest_in_a_list():
    """One value of a list that pins nothing is enough to refuse the block."""
    values = (Pattern(b"\x01" * 48), Pattern(bytes(48)))
    with pytest.raises(PolicyError, match="pins no code identity"):
        Policy((Acceptance(Platform.SEV_SNP, {"measurement": values}),))


def test_small_zero_is_an_identity():
    """ISV_PROD_ID 0 is what most SGX enclaves have: no digest, so zero is a value."""
    block = Acceptance(
        Platform.SGX,
        {"mrsigner": (Pattern(b"\x01" * 32),), "isv_prod_id": (Pattern(b"\0\0"),)},
    )
    assert Policy((block,)).accept == (block,)


@pytest.mark.parametrize(
    ("value", "mask"), [(b"", None), (b"", b""), (b"ab", b"a"), (b"ab", b"\0\0"), (b"ab", b"")]
)
def test_patterns_made_by_hand_are_checked(value, mask):
    """Python code can make no pattern that a policy file could not."""
    with pytest.raises(PolicyError):
        Pattern(value, mask)


def test_blocks_made_by_hand_are_checked():
    """A policy made in Python is as strict as one that was read."""
    with pytest.raises(PolicyError, match="pins no code identity"):
        Policy((Acceptance(Platform.TDX, {"mrtd": (Pattern(b"\x01" * 48),)}),))
    with pytest.raises(PolicyError, match="empty list"):
        Policy((Acceptance(Platform.SEV_SNP, {"measurement": ()}),))
    with pytest.raises(PolicyError, match="has none"):
        Policy((Acceptance(Platform.SIMULATION, chips=(b"\x01",)),))
    with pytest.raises(PolicyError, match=r"models\.x"):
        Policy((Acceptance(Platform.SIMULATION),), {"x": frozenset()})


def test_devices_alone_are_no_server():
    """A policy that could only ever accept a device is one that accepts nothing."""
    (names, *_) = VOCABULARY[Platform.NVIDIA_GPU].identity
    block = Acceptance(Platform.NVIDIA_GPU, dict.fromkeys(sorted(names), (Pattern(b"\x01" * 48),)))
    with pytest.raises(PolicyError, match="accepts no server"):
        Policy((block,))


@pytest.mark.parametrize("platform", [p for p in Platform if VOCABULARY[p].identity])
def test_every_way_to_pin_code(platform):
    """Each set of measurements that pins code is enough, and each without one name is not."""
    gpu = VOCABULARY[Platform.SEV_SNP].identity[0]
    server = Acceptance(Platform.SEV_SNP, dict.fromkeys(gpu, (Pattern(b"\x01" * 48),)))
    for names in VOCABULARY[platform].identity:
        block = Acceptance(platform, dict.fromkeys(names, (Pattern(b"\x01" * 48),)))
        assert Policy((server, block)).accept[1] is block
    with pytest.raises(PolicyError, match="pins no code identity"):
        Policy((server, Acceptance(platform)))


def test_an_uncertified_key_has_to_be_pinned():
    """Whoever takes a TPM's key without a certificate has to know that key."""
    quoted = {"pcr9": (Pattern(b"\x01" * 32),)}
    tolerate = frozenset({"ak-not-certified"})
    with pytest.raises(PolicyError, match=r"measurements\.ak"):
        Policy((Acceptance(Platform.TPM, quoted, tolerate=tolerate),))
    key = {"ak": (Pattern(b"\x02" * 32),)}
    assert Policy((Acceptance(Platform.TPM, quoted | key, tolerate=tolerate),)).accept


def test_simulation_policy():
    """The only policy without a code identity names what it accepts."""
    assert Policy.simulation().accept[0].tolerate == {"simulated"}


def test_masked_bits_only():
    """A mask compares the bits that it has, in values of exactly its length."""
    pattern = Pattern.parse("f0f0/f00f", "here")
    assert pattern.matches(b"\xf0\xf0")
    assert pattern.matches(b"\xff\x00")
    assert not pattern.matches(b"\xe0\xf0")
    assert not pattern.matches(b"\xf0\xf1")
    assert not pattern.matches(b"\xf0\xf0\x00")
    assert not pattern.matches(b"")


@given(st.binary(min_size=1, max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_a_mask_is_what_it_says(value, mask, found):
    """With a mask, exactly those values match that agree in every bit of it."""
    if len(mask) != len(value) or not any(mask):
        with pytest.raises(PolicyError):
            Pattern(value, mask)
        return
    number = int.from_bytes
    agree = len(found) == len(value) and number(found) & number(mask) == number(value) & number(
        mask
    )
    assert Pattern(value, mask).matches(found) == agree


@given(policies())
def test_round_trip(policy):
    """Whatever a policy says, writing and reading it gives the same policy and digest."""
    again = Policy.from_toml(policy.to_toml())
    assert again == policy
    assert again.digest == policy.digest
    assert Policy.from_dict(policy.to_dict()) == policy


@given(policies(), policies())
def test_digest_tells_policies_apart(one, other):
    """Two policies have one digest only if they are equal."""
    assert (one.digest == other.digest) == (one == other)


def test_digest_is_stable():
    """The digest is SHA-256 of the documented form; receipts of old releases rely on it."""
    policy = Policy.simulation()
    form = (
        b"\xa2\x66accept\x81\xa2\x68platform\x6asimulation\x68tolerate\x81\x69simulated"
        b"\x67version\x01"
    )
    assert policy.digest == hashlib.sha256(form).digest()


def test_order_of_names_does_not_matter():
    """Names are sorted before they are digested."""
    one, two = Pattern(b"\x01" * 48), Pattern(b"\x02" * 32)
    first = Policy((Acceptance(Platform.SEV_SNP, {"measurement": (one,), "host_data": (two,)}),))
    second = Policy((Acceptance(Platform.SEV_SNP, {"host_data": (two,), "measurement": (one,)}),))
    assert first.digest == second.digest


@given(st.text() | st.text("[]{}=\"'\n. #abcdef01", max_size=200))
def test_any_text(document):
    """Whatever the text is, reading it gives a policy or `PolicyError`."""
    try:
        policy = Policy.from_toml(document)
    except PolicyError:
        return
    assert policy.accept


leaves = st.none() | st.booleans() | st.integers() | st.floats() | text | st.just(DIGEST)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
)


@given(
    st.sampled_from(sorted(VOCABULARY)),
    st.dictionaries(
        st.sampled_from(["measurement", "measurements", "minimum", "chips", "tolerate", "max_age"]),
        values,
    ),
    values,
)
def test_any_values(platform, block, models):
    """Whatever type stands behind a known key, reading gives a policy or `PolicyError`."""
    document = {"version": 1, "accept": [{"platform": platform, **block}], "models": models}
    try:
        policy = Policy.from_dict(document)
    except PolicyError:
        return
    assert Policy.from_toml(policy.to_toml()) == policy


def test_load(tmp_path):
    """A policy is read from a file, whose trouble is told in words."""
    path = tmp_path / "policy.toml"
    with pytest.raises(PolicyError, match="cannot read the policy"):
        Policy.load(path)
    path.write_text(SNP)
    assert Policy.load(path) == Policy.from_toml(SNP)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="not UTF-8"):
        Policy.load(path)
    path.write_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    with pytest.raises(PolicyError, match="larger than"):
        Policy.load(path)


def test_a_policy_error_is_about_settings():
    """Exit code 2, not 3: nothing was said about a server."""
    assert issubclass(PolicyError, ConfigurationError)
