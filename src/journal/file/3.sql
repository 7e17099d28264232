-- What was copied together: all text that all generations got in one stretch of time, in one row, because a row for each
-- costs more than its text. The form is that of `batch.rs`. From time to time what is still needed of it becomes pieces.
create table batches (
  id integer primary key autoincrement,
  pieces blob not null
) strict;
