"""An option of image models is declared in one place."""

import os
import subprocess
import sys

ONE_MORE = """
import inspect
from uturn.networks.images import options

text = inspect.getsource(options)
line = "    preset: str | None"
assert text.count(line) == 1
option = "    foo: float = Field(1.0, description='A new option.')\\n"
exec(compile(text.replace(line, option + line), "options", "exec"), vars(options))

import uturn as ut
from typer.testing import CliRunner
from uturn.backward.reverse_diffusion import ReverseDiffusion
from uturn.cli import app
from uturn.cli.presets.images import image_experiment
from uturn.networks.images import pretrained
from uturn.sources.fashion_mnist import generator_folder

plain, changed = (image_experiment(steps=4, levels=2, items=2, foo=foo) for foo in (1.0, 2.5))
assert plain.hash == image_experiment(steps=4, levels=2, items=2).hash != changed.hash
assert "foo" not in plain.backward and changed.identity()["backward"]["foo"] == 2.5
shown = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["images", "--help"]).output
assert "--foo" in shown and "A new option." in shown

read, asked = pretrained._read_folder, []
pretrained._read_folder = lambda path, options: asked.append(options.foo) or read(path, options)
pretrained.load_pretrained(generator_folder(), foo=3.0)
ReverseDiffusion.from_pretrained(generator_folder(), "ddpm", 4, foo=4.0)
changed.parts.backward.describe()
assert asked == [3.0, 4.0, 2.5], asked
"""


def test_one_line_adds_an_option():
    """It is one of specs and their identity, of the command line, of both functions that load models, and of the reader."""
    ran = subprocess.run([sys.executable, "-c", ONE_MORE], env=dict(os.environ), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
