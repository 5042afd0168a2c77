"""Build ``gradood._cpu``, the C++ kernels of ``csrc/``: no PyTorch, stable ABI, one unit per ISA.

``GRADOOD_BUILD_EXT=0`` leaves it out, ``=1`` makes a failing build an error. Otherwise the package
installs without it, and ``gradood/_cpu_missing.txt`` says why.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

MODE = os.environ.get("GRADOOD_BUILD_EXT", "auto")
SANITIZE = os.environ.get("GRADOOD_SANITIZE", "")  # for example address,undefined
JOBS = int(os.environ.get("MAX_JOBS", "2"))
X86 = platform.machine().lower() in ("x86_64", "amd64")

COMMON = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
COMMON += ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
#: The noise is the same in every backend to the last bit: no fused multiply-adds.
EXACT = ["-ffp-contract=off"]
UNITS = {
    "module": [],
    "repeated": [],
    "cpu": [],
    "parallel": [],
    "geometry": [],
    "tile_plan": [],
    "votes": [],
    "isa_baseline": [],
    "noise_baseline": EXACT,
}
if X86:
    COMMON += ["-DGRADOOD_X86"]
    AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512".split()
    UNITS |= {
        "isa_avx2": ["-mavx2", "-mfma"],
        "noise_avx2": ["-mavx2", *EXACT],
        "isa_avx512": AVX512,
        "noise_avx512": [*AVX512, *EXACT],
        "isa_amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    }
if SANITIZE:
    COMMON += ["-g", "-O1", f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]


class BuildKernels(build_ext):
    """Compile every unit with the flags of its instruction set, several at a time."""

    def build_extension(self, ext: Extension) -> None:
        try:
            if MODE == "0":
                raise RuntimeError("GRADOOD_BUILD_EXT=0 when gradood was built")
            self.compile_units(ext)
            super().build_extension(ext)
            self.note(ext).unlink(missing_ok=True)
        except Exception as error:
            if MODE == "1":
                raise
            self.note(ext).parent.mkdir(parents=True, exist_ok=True)
            self.note(ext).write_text(f"the C++ kernels were not built: {error}\n")
            self.warn(f"{ext.name} is left out: {error}")

    def note(self, ext: Extension) -> Path:
        """Where the package says why it has no kernels."""
        return Path(self.get_ext_fullpath(ext.name)).with_name("_cpu_missing.txt")

    def copy_extensions_to_source(self) -> None:
        """For editable installs: put kernels or note into the source tree, and drop a stale one."""
        (ext,) = self.extensions
        built = Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(ext.name)))
        reason = built.with_name("_cpu_missing.txt")
        self.note(ext).unlink(missing_ok=True)
        if not reason.exists():
            return super().copy_extensions_to_source()
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        self.copy_file(str(reason), str(self.note(ext)))

    def compile_units(self, ext: Extension) -> None:
        def compile_unit(name: str) -> list[str]:
            macros = [("Py_LIMITED_API", "0x030A0000")]
            flags = COMMON + UNITS[name]
            return self.compiler.compile(
                [f"csrc/{name}.cpp"],
                output_dir=self.build_temp,
                include_dirs=self.compiler.include_dirs + ["csrc"],
                macros=macros,
                extra_postargs=flags,
            )

        slowest_first = sorted(UNITS, key=lambda name: not name.startswith("isa"))
        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(compile_unit, slowest_first))
        ext.extra_objects = [path for group in objects for path in group]


EXTENSION = Extension(
    "gradood._cpu",
    sources=[],
    depends=[str(path) for path in sorted(Path("csrc").glob("*"))],
    language="c++",
    py_limited_api=True,
    extra_link_args=["-ldl"] + ([f"-fsanitize={SANITIZE}"] if SANITIZE else []),
)

#: The package's own folder has a link to kernels/, which a checkout without symbolic links lacks.
PACKAGES = find_packages(include=["gradood*"], exclude=["gradood.kernels"])

setup(
    packages=[*PACKAGES, "gradood.kernels"],
    package_dir={"gradood.kernels": "kernels"},
    ext_modules=[EXTENSION],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
