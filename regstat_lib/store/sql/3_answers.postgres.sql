-- The daemon's plans are for small batches; what follows reads whole tables, once.
set local enable_seqscan = on;
set local enable_hashjoin = on;
set local work_mem = '64MB';
