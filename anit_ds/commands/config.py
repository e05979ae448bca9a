"""`anit config`: every field explained, or what a configuration comes to."""

from __future__ import annotations

import click

from anit_ds.commands.arguments import config_and_overrides


@click.command(short_help="Print every field explained, or what a configuration comes to.")
@config_and_overrides(required=False)
@click.option("--get", "field", metavar="FIELD", help="Print one field's value alone, such as out or train.lr.")
def config(config: str | None, overrides: tuple[str, ...], field: str | None) -> None:
    """Without CONFIG: every field with its meaning and default, as YAML to start from.

    With CONFIG: the configuration that it comes to, overrides applied and defaults filled in; with --get one field of
    it, which scripts can use:

    \b
        ls "$(anit config my.yaml train.seed=2 --get out)"
    """
    import yaml

    from anit_ds.configfile import annotated_yaml, get_field, load_config

    if config is None:
        if field is not None:
            raise click.UsageError("--get needs a CONFIG to read")
        click.echo(annotated_yaml())
        return
    settings = load_config(config, overrides)
    if field is None:
        click.echo(settings.to_yaml(), nl=False)
        return
    value = get_field(settings, field)
    click.echo(
        value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False).removesuffix("...\n").strip()
    )
