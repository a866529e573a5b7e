"""How dates look where a library writes them (Django's admin): English without a.m. and p.m."""
