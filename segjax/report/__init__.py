"""Draw result rows: tables, figures, and the HTML page."""
