"""What people read: accuracy, tables, inspection."""
