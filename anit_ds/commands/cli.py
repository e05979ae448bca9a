"""The command `anit`: a list of its commands."""

from __future__ import annotations

import click

from anit_ds import __version__
from anit_ds.commands.compare import compare
from anit_ds.commands.config import config
from anit_ds.commands.data import data
from anit_ds.commands.demo import demo
from anit_ds.commands.doctor import doctor
from anit_ds.commands.entry import run
from anit_ds.commands.evaluate import evaluate
from anit_ds.commands.export import export
from anit_ds.commands.init import init
from anit_ds.commands.plan import plan
from anit_ds.commands.predict import predict
from anit_ds.commands.serve import serve
from anit_ds.commands.train import train
from anit_ds.commands.trying import try_texts


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="anit")
def cli() -> None:
    """Adversarial Noisy Instruction Tuning of causal language models on DeepSpeed.

    \b
    Start with:   anit demo;  anit init DIR --data FILE
    A run:        anit data CONFIG;  anit train CONFIG;  anit eval RUN;  anit predict RUN --input FILE;  anit try RUN
    """


for command in (compare, config, data, demo, doctor, evaluate, export, init, plan, predict, serve, train, try_texts):
    cli.add_command(command)


def main() -> None:
    """Entry point of the script `anit`."""
    run(cli)


if __name__ == "__main__":
    main()
