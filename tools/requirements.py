"""Print the requirements of this project and of the named extras, one a line, without the project itself."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = [project["dependencies"]]
groups += [project["optional-dependencies"][extra] for extra in sys.argv[1].split(",") if extra]
print("\n".join(requirement for group in groups for requirement in group))
