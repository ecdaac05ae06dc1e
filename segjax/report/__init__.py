"""Result rows drawn: tables, figures, and the page."""
