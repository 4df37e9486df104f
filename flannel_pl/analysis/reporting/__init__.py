"""The verb report: measures as numbers, tables, words and a page."""
