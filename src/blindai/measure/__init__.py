"""What a genuine boot of an image has to show, computed offline from the image alone.

Always true here: nothing is run, and nothing is believed that is not computed from files or named
as golden, with where it was seen. What cannot be predicted is said, by name and reason; a
policy pins only what is known.
"""

from blindai.measure.image import MachineImage, load_image
from blindai.measure.nitro import measure_nitro
from blindai.measure.prediction import Measured, Prediction, Unpredicted
from blindai.measure.sev_snp import measure_sev_snp
from blindai.measure.sgx import measure_sgx
from blindai.measure.tdx import measure_tdx
from blindai.measure.tpm import Golden, golden_from_log, measure_tpm

__all__ = [
    "Golden",
    "MachineImage",
    "Measured",
    "Prediction",
    "Unpredicted",
    "golden_from_log",
    "load_image",
    "measure_nitro",
    "measure_sev_snp",
    "measure_sgx",
    "measure_tdx",
    "measure_tpm",
]
