"""The steps of the kit, a file each: run(record, small) notes what it finds as soon as it is known (record.py)."""
