"""What people look at: tables, figures, pages; never imports torch."""
