"""`anit export`: a run's adapter, or base and adapter merged, written to a folder of its own."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write the adapter, or base and adapter merged.")
@click.argument("run", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--merge", is_flag=True, help="Base and adapter in one checkpoint that transformers loads alone.")
def export(run: str, out: str, merge: bool) -> None:
    """Write the adapter of RUN to OUT in PEFT's format, or with --merge the whole model."""
    from anit_ds.export import export_adapter, export_merged

    if not merge:
        export_adapter(Path(run), Path(out))
        click.echo(f"adapter written to {out}: PeftModel.from_pretrained(base, {out!r})")
        return
    difference = export_merged(Path(run), Path(out))
    told = f"its logits differ from base + adapter's by {difference:.1e} of their spread"
    click.echo(f"merged model written to {out}; {told}")
