"""The processes of a run: who this one is, how they meet and agree, who ends a run that hangs, what a signal asks."""
