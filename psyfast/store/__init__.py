"""What a run leaves behind: Parquet tables written atomically, a manifest, and reading them back; never imports torch."""
