"""Metadata from settings.ini (nbdev's file); the notebooks that the command executes and the studies travel inside the wheel."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini")
cfg = parser["DEFAULT"]

class build_with_notebook(build_py):
    """Copy the notebooks that `medstrat run` and `medstrat stratify` execute to `medstrat/_notebooks/`, the studies to `medstrat/_studies/`."""

    def run(self):
        super().run()
        if self.editable_mode: return                 # an editable install reads nbs/ itself
        notebooks = [root / "nbs" / f"{name}.ipynb" for name in ("07_experiments", "09_stratify")]
        studies = [p for p in sorted((root / "studies").glob("*")) if p.suffix in (".yaml", ".csv")]
        for folder, files in dict(_notebooks=notebooks, _studies=studies).items():
            target = Path(self.build_lib) / "medstrat" / folder
            target.mkdir(parents=True, exist_ok=True)
            for path in files: shutil.copy(path, target)

extras = {name: cfg[f"{name}_requirements"].split() for name in ("tables", "dicom", "dask", "trackers")}

setup(
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"], author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(),
    url=cfg["git_url"],
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research",
                 "Programming Language :: Python :: 3.11"],
    packages=find_packages(include=["medstrat", "medstrat.*"]),
    package_data={"medstrat": ["py.typed"], "": ["*.pyi"]},
    install_requires=cfg["requirements"].split(),
    extras_require=extras | {"dev": [*cfg["dev_requirements"].split(), *(name for names in extras.values() for name in names)]},
    entry_points={"console_scripts": ["medstrat=medstrat.cli:main"], "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    cmdclass={"build_py": build_with_notebook},
)
