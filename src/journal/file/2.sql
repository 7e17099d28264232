-- Which of the relays that share a journal had this file last.
create table instance (
  id text not null
) strict;
