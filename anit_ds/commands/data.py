"""`anit data`: the noisy set of a run, built, measured and shown."""

from __future__ import annotations

import click

from anit_ds.commands.arguments import config_and_overrides, fresh


@click.command(short_help="Build the noisy set, measure it, and show it.")
@config_and_overrides()
@click.option("--dry-run", is_flag=True, help="Only say what measuring the distortion would ask of a model.")
@fresh
def data(config: str, overrides: tuple[str, ...], dry_run: bool, fresh: bool) -> None:
    """Build the noisy set of CONFIG: OUT/data with train, dev, test as JSON lines, and manifest.json.

    Shows counts of examples and labels, lengths against data.max_length, three noisy instructions, one whole prompt.

    Overrides are written section.key=value, such as noise.kind=replacement noise.omega=0.3.
    """
    from anit_ds.commands.describe import describe_data
    from anit_ds.configfile import load_config
    from anit_ds.data.rundata import RunData
    from anit_ds.data.survey import PLAIN, Template, survey
    from anit_ds.folder_lock import only_writer
    from anit_ds.runfolder import RunFolder

    settings = load_config(config, overrides)
    if dry_run:
        click.echo("\n".join(RunData.estimate(settings)))
        return
    run = RunFolder(settings.out)
    with only_writer(run.path), run.kept_until_accepted():
        settings = run.begin(settings, fresh=fresh)
        built = RunData.load(settings, run.data, begun=run.begun_data())
        run.accept()
    template: Template | None = PLAIN
    if settings.prompt.style == "chat":
        from anit_ds.modeling import chat_template  # and with it transformers, which plain prompts need not wait for

        around = chat_template(settings.model)
        template = Template(*around) if around else None
    click.echo(describe_data(built, run.data, [survey(of, settings, template) for of in built.sets]))
