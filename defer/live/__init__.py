"""What people look at while a dispatcher serves: the live page, `defer top`, and what both of them show."""
