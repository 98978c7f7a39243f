"""From parameters to report: schemas, plan, execution, records, export. Knows no torch."""
