"""What is shown: tables, pictures, pages, comparisons."""
