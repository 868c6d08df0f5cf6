"""What pyproject.toml cannot say: the examples, which lie beside the package, go into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExamples(build_py):
    """Copies the experiments of ``examples/`` to ``fedistill/examples``, except in editable installs."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(__file__).parent / "examples"
        for source in [*folder.glob("*.toml"), *folder.glob("methods/*.toml"), *folder.glob("*.py")]:
            target = Path(self.build_lib, "fedistill", "examples", source.relative_to(folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithExamples})
