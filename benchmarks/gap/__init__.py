"""How long results stay away when something goes, comes or changes, in the testbed."""
